"""Builds the archive of the Lambda functions: ``python -m infra.aws.lambda_archive build/functions.zip``.

osls calls it whenever it packages or deploys; an archive newer than all of its sources is not rebuilt.

It holds foldtune's modules and base dependencies, the latter as locked wheels for Lambda's platform, and no extra:
functions start trainings, they never train.
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
PYTHON, PLATFORM = "3.13", "aarch64-manylinux_2_28"
# Lambda allows 50 MB zipped and 250 MB unzipped; a smaller function starts faster.
MAX_ZIPPED_BYTES = 40_000_000
MAX_UNZIPPED_BYTES = 120_000_000
# Scripts with the path of this machine's Python, and what uv leaves behind.
_EXCLUDED = {"bin", ".lock", "__pycache__"}
# Fixed, so that equal content makes an equal archive: an unchanged function is not deployed again.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)


def install(folder: Path, *, python: str = PYTHON, platform: str | None = PLATFORM) -> None:
    """Install into ``folder`` what the functions import; without ``platform``, for this machine.

    Raises:
        subprocess.CalledProcessError: uv failed; its output is on stderr.
    """
    command = [uv.find_uv_bin(), "pip", "install", "--quiet", "--target", str(folder), "--python-version", python]
    target_platform = ["--python-platform", platform] if platform else []
    locked = ["--require-hashes", "--constraints", str(ROOT / "requirements.lock"), "--only-binary", ":all:"]
    subprocess.run([*command, *target_platform, *locked, "--requirements", str(ROOT / "pyproject.toml")], check=True)
    for path in modules():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def pack(folder: Path, archive: Path) -> None:
    """Zip ``folder``.

    Raises:
        ValueError: the archive is too large.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = (path for path in folder.rglob("*") if path.is_file())
    paths = sorted(path for path in files if _EXCLUDED.isdisjoint(path.relative_to(folder).parts))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in paths:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _TIMESTAMP)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, path.read_bytes())
    zipped, unzipped = archive.stat().st_size, sum(path.stat().st_size for path in paths)
    if zipped > MAX_ZIPPED_BYTES or unzipped > MAX_UNZIPPED_BYTES:
        allowed = f"at most {MAX_ZIPPED_BYTES} and {MAX_UNZIPPED_BYTES}"
        raise ValueError(f"{archive} has {zipped} bytes, {unzipped} unzipped, {allowed}")
    sys.stdout.write(json.dumps({"archive": str(archive), "bytes": zipped, "unzipped_bytes": unzipped}) + "\n")


def modules() -> list[Path]:
    """foldtune's own modules in the archive."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def main(arguments: list[str]) -> None:
    """Build the archive at the path that is the only argument."""
    (archive,) = map(Path, arguments)
    sources = [ROOT / "pyproject.toml", ROOT / "requirements.lock", *modules()]
    if archive.exists() and archive.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return
    with TemporaryDirectory() as folder:
        install(Path(folder))
        pack(Path(folder), archive)


if __name__ == "__main__":
    main(sys.argv[1:])
