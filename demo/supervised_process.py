"""A ``foldtune`` command as a supervised child process."""

import os
import subprocess
import sys
from collections import deque
from pathlib import Path

from foldtune.settings import ENV_PREFIX
from infra.local.server import STOP_SECONDS, SUPERVISOR

LOG_TAIL_LINES = 40


class SupervisedProcess:
    """``foldtune NAME`` under the local servers' supervisor, which stops it when this process exits, even by SIGKILL.

    It runs in ``folder`` and logs to ``NAME.log`` there.
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
            env=_environment_without_settings() | environment,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._supervisor.poll() is None

    def stop(self) -> None:
        """Terminate the process and wait for its exit; the supervisor kills it after a grace period."""
        if self._supervisor.stdin:
            self._supervisor.stdin.close()
        try:
            self._supervisor.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()


def log_tail(path: Path) -> str:
    """The last lines of a log file; empty if it does not exist."""
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, LOG_TAIL_LINES))


def _environment_without_settings() -> dict[str, str]:
    """This environment without foldtune's settings, which may point to other servers than the demo's."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
