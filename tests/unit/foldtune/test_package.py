"""The package as agents install it: quick to import, complete, and of the same version as the server's."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import foldtune
from tests.unit.test_architecture import PACKAGES, imports

ROOT = Path(__file__).parents[3]


def project(folder: str = ".") -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    return found


def test_importing_the_package_imports_no_library() -> None:
    program = "import sys, foldtune; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    libraries = {re.split(r"[\[<>=]", dependency)[0].replace("-", "_") for dependency in project()["dependencies"]}
    assert {"boto3", "kafka_python", "pydantic", "typer"} <= libraries
    assert not (libraries | {"kafka"}) & set(done.stdout.split())


@pytest.mark.parametrize("name", foldtune.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(foldtune, name).__name__ == name
    assert name in dir(foldtune)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        foldtune.Nothing  # noqa: B018


def test_both_distributions_have_the_same_version() -> None:
    version = project()["version"]
    server = project("server")
    assert server["version"] == version
    assert server["dependencies"] == [f"foldtune=={version}"]


# Modules that come with a distribution of another name, or with a library that is declared.
COME_WITH = {
    "aws_msk_iam_sasl_signer": "aws-msk-iam-sasl-signer-python",
    "botocore": "boto3",
    "mode": "faust-streaming",
    "mypy_boto3_batch": "boto3",
    "mypy_boto3_s3": "boto3",
    "urllib3": "boto3",
}
# Builds the archive of the functions, in a checkout; and are for snapshots and their texts, which the SDK does not use.
ELSEWHERE = {"uv", "pyarrow", "regex"}


@pytest.mark.parametrize(
    "package", ["foldtune", "streams", "trainers", "launchers", "api", "notifications", "infra", "demo"]
)
def test_every_library_that_is_imported_is_declared(package: str) -> None:
    server = project("server")["optional-dependencies"]
    dependencies = [
        *project()["dependencies"],
        *(() if package == "foldtune" else chain.from_iterable(server.values())),
    ]
    declared = {re.split(r"[\[<>=]", dependency)[0].lower() for dependency in dependencies}
    distributions = packages_distributions()
    known = {*sys.stdlib_module_names, *PACKAGES, *ELSEWHERE}
    for path in (ROOT / package).rglob("*.py"):
        for module in {name.partition(".")[0] for name in imports(path)} - known:
            found = [*distributions.get(module, ()), COME_WITH.get(module, module)]
            names = {name.lower().replace("_", "-") for name in found}
            assert names & declared, f"{path.relative_to(ROOT)} imports {module} of {' or '.join(names)}"
