"""The SDK's wheel in an empty environment: its content, its needs, and the README's example against a real broker."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import uv

from foldtune.cli import COMMANDS
from foldtune.events import ChatLog, DocumentUpserted, Event, Feedback, FineTuneRequested, State
from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import Topic
from tests.integration.conftest import StartWorker

ROOT = Path(__file__).parents[2]
# Of foldtune-server.
NOT_INSTALLED = [name for name, (module, _) in COMMANDS.items() if module is None]
# Modules of the servers, by the library that the SDK does not have.
NEEDS = {"foldtune.pairs": "pyarrow", "foldtune.snapshot_schema": "pyarrow", "foldtune.texts": "regex"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with locked packages."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [uv.find_uv_bin(), "build", "--quiet", "--wheel", "--require-hashes", "--build-constraints"]
    subprocess.run([*command, "requirements.lock", "--out-dir", folder, "."], cwd=ROOT, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and its locked dependencies."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([uv.find_uv_bin(), "venv", "--quiet", "--python", sys.executable, environment], check=True)
    install: list[str | Path] = [uv.find_uv_bin(), "pip", "install", "--quiet", "--python", environment]
    locked = ["--require-hashes", "--constraints", "requirements.lock", "--requirements", "pyproject.toml"]
    subprocess.run([*install, *locked], cwd=ROOT, check=True)
    subprocess.run([*install, "--no-deps", wheel], check=True)
    return environment / "bin" / "python"


def run(command: list[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside of the repository, without this environment's variables."""
    environment = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG"}} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_has_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    (metadata,) = {name.partition("/")[0] for name in names} - {"foldtune"}
    assert re.fullmatch(r"foldtune-[\d.]+\.dist-info", metadata)
    assert {f"{metadata}/entry_points.txt", f"{metadata}/licenses/LICENSE", "foldtune/py.typed"} <= set(names)
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "foldtune").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == files


def test_every_module_except_the_torch_one_is_importable(python: Path, tmp_path: Path) -> None:
    program = """
import importlib, json, pkgutil, foldtune
from foldtune import ChatLog, FoldtuneClient
missing = {}
for module in pkgutil.walk_packages(foldtune.__path__, "foldtune."):
    if module.name != "foldtune.__main__":
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            missing[module.name] = error.name
print(json.dumps(missing))
"""
    done = run([python, "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == NEEDS
    for module, library in NEEDS.items():
        assert f"Needs {library}" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_the_command_line_lists_installed_and_missing_commands(python: Path, tmp_path: Path) -> None:
    done = run([python.parent / "foldtune", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^  ([a-z-]+) {2,}\S", done.stdout.partition("Commands:")[2], re.MULTILINE) == [
        name for name in COMMANDS if name not in NOT_INSTALLED
    ]
    missing = f"Not installed: {', '.join(NOT_INSTALLED)}; they come with: pip install foldtune-server"
    assert missing in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", NOT_INSTALLED)
def test_a_missing_command_names_its_extra(python: Path, tmp_path: Path, name: str) -> None:
    done = run([python.parent / "foldtune", name], tmp_path)
    assert done.returncode == 2
    assert f"{name!r} is not installed; it comes with: pip install foldtune-server" in done.stderr
    assert "Traceback" not in done.stderr


def test_sdk_commands_run(python: Path, tmp_path: Path) -> None:
    done = run([python.parent / "foldtune", "config", "--json"], tmp_path, FOLDTUNE_KAFKA__PARTITIONS="7")
    assert json.loads(done.stdout)["kafka"]["partitions"] == 7
    done = run([python.parent / "foldtune", "request", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_readme_runs(
    python: Path, tmp_path: Path, variables: dict[str, str], settings: Settings, start_worker: StartWorker
) -> None:
    section = (ROOT / "README.md").read_text().partition("## Connect an agent")[2]
    (example, *_) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    # A worker answers the request.
    start_worker()
    done = run([python, "-c", example], tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    # A request needs more examples than one.
    assert State.REJECTED in done.stdout
    assert "data: 1 examples, at least 20" in done.stdout
    published: dict[Topic, type[Event]] = {
        Topic.DOCUMENTS: DocumentUpserted,
        Topic.CHAT_LOGS: ChatLog,
        Topic.FEEDBACK: Feedback,
        Topic.FINE_TUNE_REQUESTS: FineTuneRequested,
    }
    for topic, event in published.items():
        (record,) = read(settings.kafka, topic)
        event.model_validate_json(record.value)
