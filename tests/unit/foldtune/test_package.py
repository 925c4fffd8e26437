"""The package as agents install it: quick to import, complete, and of the same version as the server's."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import foldtune

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
