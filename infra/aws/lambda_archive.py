"""Makes the archive of the Lambda functions: ``python -m infra.aws.lambda_archive build/functions.zip``.

osls calls it whenever it packages or deploys; an archive that is newer than all it is made of is left as it is.

It holds foldtune's modules and its base dependencies, at the locked versions, as wheels for Lambda's machine. No extra
is in it: a function starts trainings and never trains.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import uv

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "foldtune", "infra", "launchers", "trainers")
# As in serverless.yml.
PYTHON, MACHINE = "3.13", "aarch64-manylinux_2_28"
# Lambda's own bounds are 50 MB as uploaded and 250 MB unpacked; far below them a function still starts quickly.
MAX_ZIPPED_BYTES = 40_000_000
MAX_UNZIPPED_BYTES = 120_000_000
# Commands with the path of this machine's Python, and what uv leaves.
_LEFT_OUT = {"bin", ".lock", "__pycache__"}
# The same content is the same archive, whenever it is made: an unchanged function is not deployed again.
_MOMENT = (1980, 1, 1, 0, 0, 0)


def collect(folder: Path, *, python: str = PYTHON, machine: str | None = MACHINE) -> None:
    """Fill ``folder`` with what the functions import; without ``machine`` for the one that this runs on.

    Raises:
        subprocess.CalledProcessError: uv could not install it; what it says is on stderr.
    """
    install = [uv.find_uv_bin(), "pip", "install", "--quiet", "--target", str(folder), "--python-version", python]
    platform = ["--python-platform", machine] if machine else []
    locked = ["--require-hashes", "--constraints", str(ROOT / "requirements.lock"), "--only-binary", ":all:"]
    subprocess.run([*install, *platform, *locked, "--requirements", str(ROOT / "pyproject.toml")], check=True)
    for path in modules():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def pack(folder: Path, archive: Path) -> None:
    """Zip ``folder``.

    Raises:
        ValueError: it is too large for a function.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = (path for path in folder.rglob("*") if path.is_file())
    paths = sorted(path for path in files if _LEFT_OUT.isdisjoint(path.relative_to(folder).parts))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in paths:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _MOMENT)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, path.read_bytes())
    zipped, unzipped = archive.stat().st_size, sum(path.stat().st_size for path in paths)
    if zipped > MAX_ZIPPED_BYTES or unzipped > MAX_UNZIPPED_BYTES:
        allowed = f"at most {MAX_ZIPPED_BYTES} and {MAX_UNZIPPED_BYTES}"
        raise ValueError(f"{archive} has {zipped} bytes, {unzipped} unpacked; allowed are {allowed}")
    sys.stdout.write(json.dumps({"archive": str(archive), "bytes": zipped, "unzipped_bytes": unzipped}) + "\n")


def modules() -> list[Path]:
    """foldtune's own part of the archive."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def main(arguments: list[str]) -> None:
    """Make the archive whose path is the only argument."""
    (archive,) = map(Path, arguments)
    sources = [ROOT / "pyproject.toml", ROOT / "requirements.lock", *modules()]
    if archive.exists() and archive.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return
    with TemporaryDirectory() as folder:
        collect(Path(folder))
        pack(Path(folder), archive)


if __name__ == "__main__":
    main(sys.argv[1:])
