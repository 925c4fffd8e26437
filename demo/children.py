"""The parts of foldtune that the demonstration runs as processes of their own."""

import os
import subprocess
import sys
from collections import deque
from pathlib import Path

from infra.local.server import STOP_SECONDS, SUPERVISOR

LOG_TAIL_LINES = 40


class Child:
    """``foldtune NAME`` under the supervisor of the local servers: it ends with this process, however that ends.

    What it says goes to ``NAME.log`` in ``folder``, which is also where it runs.
    """

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        # A session of its own: Ctrl-C in a terminal reaches only this process, which then stops its children in order.
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", str(SUPERVISOR), str(self.log), sys.executable, "-m", "foldtune", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            env=_inherited() | environment,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._supervisor.poll() is None

    def stop(self) -> None:
        """Ask it to end and wait until it has; one that does not is ended by its supervisor."""
        if self._supervisor.stdin:
            self._supervisor.stdin.close()
        try:
            self._supervisor.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()


def log_tail(path: Path) -> str:
    """The last lines of a log; nothing where there is none."""
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, LOG_TAIL_LINES))


def _inherited() -> dict[str, str]:
    """This environment without foldtune's settings, which may point to servers that are not the demonstration's."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("FOLDTUNE_")}
