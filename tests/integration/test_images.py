"""The container images, as far as that goes without a container runtime.

The Dockerfile is linted and read, each image's packages are installed as it installs them, and its command is run on
this machine with the image's own environment and its health check.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import uv
import yaml

from console import assets
from foldtune.settings import Settings
from infra.aws import lambda_archive
from infra.local.ports import free_port

ROOT = lambda_archive.ROOT
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
COMPOSE = ROOT / "infra" / "compose.yaml"
PACKAGES = (
    "api",
    "console",
    "demo",
    "foldtune",
    "infra",
    "launchers",
    "notifications",
    "server",
    "streams",
    "trainers",
)
IMAGES = ("worker", "trainer", "api")
TOOLS = Path(sys.executable).parent


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile: its base and its instructions, with continued lines joined."""

    base: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, keyword: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == keyword]

    def last(self, keyword: str) -> str:
        return self.all(keyword)[-1]

    @property
    def environment(self) -> dict[str, str]:
        pairs = [pair for line in self.all("ENV") for pair in shlex.split(line)]
        return dict(pair.split("=", 1) for pair in pairs)

    @property
    def command(self) -> list[str]:
        found: list[str] = json.loads(self.last("CMD"))
        return found

    @property
    def health_check(self) -> list[str]:
        found: list[str] = json.loads(self.last("HEALTHCHECK").partition("CMD ")[2])
        return found


def stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE))
    found: dict[str, Stage] = {}
    for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        head, *lines = [line for line in part.splitlines() if line.strip()]
        base, _, name = head.split()
        found[name] = Stage(base, tuple((line.split()[0], line.partition(" ")[2]) for line in lines))
    return found


STAGES = stages()


def test_the_linter_reports_nothing() -> None:
    done = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_external_images_are_pinned_by_version() -> None:
    outside = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert outside
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-slim-[a-z]+", image) for image in outside)
    uv_version = re.search(r"^uv==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert uv_version
    assert f"uv=={uv_version[1]} " in STAGES["build"].last("RUN")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_unprivileged_and_contains_no_secrets(name: str) -> None:
    stage = STAGES[name]
    assert stage.last("USER") == "10001:10001"
    keywords = [keyword for keyword, _ in stage.instructions]
    assert "RUN" not in keywords[keywords.index("USER") :]
    assert "ADD" not in keywords
    assert "ENTRYPOINT" not in keywords
    for used in (STAGES["base"], stage):
        assert not used.all("ARG")
        assert not [variable for variable in used.environment if re.search("PASSWORD|SECRET|TOKEN|KEY", variable)]
        # Packages come from a stage of their own: no compiler, no cache and no lock file is in the image.
        assert all(line.startswith("--from=") for line in used.all("COPY"))
    assert stage.last("HEALTHCHECK") == "NONE" if name == "trainer" else stage.health_check


def allowed() -> list[str]:
    """What may come into an image, as .dockerignore says."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    return [line[1:] for line in lines if line.startswith("!")]


def test_the_build_context_contains_only_code() -> None:
    files = {"pyproject.toml", "requirements.lock", "README.md", "LICENSE"}
    assert {pattern.partition("/")[0] for pattern in allowed()} == set(PACKAGES) | files


# faust-streaming has no wheel for Linux on ARM.
@pytest.mark.parametrize(
    ("name", "machine"), [("worker", "x86_64"), ("trainer", "x86_64"), ("api", "x86_64"), ("api", "aarch64")]
)
def test_every_package_of_an_image_is_a_locked_wheel(name: str, machine: str, tmp_path: Path) -> None:
    python = STAGES["base"].base.removeprefix("python:").rpartition(".")[0]
    platform = ["--python-version", python, "--python-platform", f"{machine}-manylinux_2_28"]
    run_install(name, ["--dry-run", "--target", str(tmp_path), *platform])


def run_install(name: str, where: list[str]) -> None:
    """The Dockerfile's own command that installs the packages of an image, elsewhere."""
    command = shlex.split(STAGES[f"{name}-packages"].last("RUN"))
    assert command[:5] == ["uv", "pip", "install", "--python", "/opt/foldtune"]
    subprocess.run([uv.find_uv_bin(), "pip", "install", "--quiet", *where, *command[5:]], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """foldtune and foldtune-server, built by the Dockerfile's commands from what .dockerignore lets in."""
    context, folder = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("wheel")
    for pattern in allowed():
        for path in ROOT.glob(pattern):
            target = context / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    for line in STAGES["wheel"].last("RUN").split("&&"):
        command = shlex.split(line)
        assert command[:2] == ["uv", "build"]
        options = [str(folder) if word == "/wheel" else word for word in command[1:]]
        subprocess.run([uv.find_uv_bin(), *options, "--quiet"], cwd=context, check=True)
    found = sorted(folder.glob("*.whl"))
    assert [path.name.partition("-")[0] for path in found] == ["foldtune", "foldtune_server"]
    return found


def test_the_wheel_has_what_the_console_s_pages_load_and_no_more_of_npm(wheels: list[Path]) -> None:
    with zipfile.ZipFile(wheels[1]) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("console/")}
    loaded = {str(path.relative_to(ROOT)) for path in assets.FILES.values()}
    assert loaded <= names
    of_npm = {name for name in names if "node_modules" in name}
    assert of_npm - loaded == {f"console/frontend/node_modules/{package}/LICENSE" for package in ("htmx.org", "uplot")}
    assert {"console/words.toml", "console/templates/base.html"} <= names


class Container:
    """An image on this machine: its packages in an environment of their own, its variables, its command."""

    def __init__(self, name: str, folder: Path, wheels: list[Path], variables: dict[str, str]) -> None:
        self.stage = STAGES[name]
        self.port = free_port()
        self.log = folder / f"{name}.log"
        environment = folder / name
        subprocess.run([uv.find_uv_bin(), "venv", "--quiet", "--python", sys.executable, environment], check=True)
        run_install(name, ["--python", str(environment)])
        install = [uv.find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--python"]
        subprocess.run([*install, environment, *wheels], check=True)
        self._folder = folder / f"{name}-state"
        self._folder.mkdir()
        of_image = {
            key: self._here(value) for key, value in (STAGES["base"].environment | self.stage.environment).items()
        }
        of_image["PATH"] = f"{environment / 'bin'}:/usr/bin:/bin"
        # Nothing of this machine's own environment, but the way to it.
        kept = {key: value for key, value in os.environ.items() if key in {"HOME", "LANG"}}
        self._variables = kept | of_image | variables

    def _here(self, text: str) -> str:
        """What means the inside of a container, for this machine."""
        text = text.replace("/var/lib/foldtune", str(self._folder)).replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        return re.sub(r"\b(9100|8080)\b", str(self.port), text)

    def popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command of the container."""
        words = [self._here(word) for word in command]
        program = next(
            Path(folder, words[0]) for folder in self._variables["PATH"].split(":") if Path(folder, words[0]).exists()
        )
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [program, *words[1:]], env=self._variables, cwd=self._folder, stdout=output, stderr=subprocess.STDOUT
            )

    def healthy(self, check: list[str], process: subprocess.Popen[bytes], seconds: float = 90) -> None:
        """Wait until the health check is content."""
        deadline = time.monotonic() + seconds
        while self.popen(check).wait() != 0:
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)


def test_worker_launcher_and_api_run_in_their_images(
    variables: dict[str, str], tmp_path: Path, wheels: list[Path]
) -> None:
    # The data folder is the image's.
    variables = {key: value for key, value in variables.items() if not key.endswith(("DATA_DIR", "WORK_DIR"))}
    # Of this machine's ports an API needs two.
    variables |= {"FOLDTUNE_API__METRICS_PORT": str(free_port())}
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    running = []
    try:
        for name in ("worker", "api"):
            container = Container(name, tmp_path, wheels, variables)
            running.append(
                container.popen([*container.stage.command, *(["--port", str(container.port)] * (name == "api"))])
            )
            container.healthy(container.stage.health_check, running[-1])
            container.healthy(services[name]["healthcheck"]["test"][1:], running[-1])
        for process in running:
            process.terminate()
            assert process.wait(20) == 0
    finally:
        for process in running:
            process.kill()


def test_launcher_and_job_run_in_the_trainer_image(
    variables: dict[str, str], settings: Settings, tmp_path: Path, wheels: list[Path]
) -> None:
    variables = {key: value for key, value in variables.items() if not key.endswith("WORK_DIR")}
    container = Container("trainer", tmp_path, wheels, variables)
    check = yaml.safe_load(COMPOSE.read_text())["services"]["launcher"]["healthcheck"]["test"][1:]
    prefix = settings.kafka.topic_prefix
    here = [
        word.replace("kafka:19092", settings.kafka.bootstrap_servers).replace('"foldtune-', f'"{prefix}foldtune-')
        for word in check
    ]
    assert container.popen(here).wait(60) == 1
    launcher = container.popen(container.stage.command)
    try:
        container.healthy(here, launcher)
        # The command of the job definition of AWS Batch; the job is not there.
        job = container.popen(["python", "-m", "trainers.job", f"s3://{settings.s3.bucket}/jobs/none/job.json"])
        assert job.wait(120) == 75, container.log.read_text()
        assert "training not started" in container.log.read_text()
        launcher.terminate()
        assert launcher.wait(60) == 0
    finally:
        launcher.kill()
