"""A ``foldtune`` command as a supervised child process."""

import subprocess
import sys
from pathlib import Path

from foldtune.settings import environment_without_settings
from infra.local.server import SUPERVISOR, stop_supervisor


class SupervisedProcess:
    """``foldtune NAME`` under the local servers' supervisor, which stops it when this process exits, even by SIGKILL.

    It runs in ``folder`` and logs to ``NAME.log`` there.
    """

    def __init__(self, name: str, folder: Path, environment: dict[str, str], *options: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        # A session of its own: Ctrl-C in a terminal reaches only this process, which then stops its children in order.
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", str(SUPERVISOR), str(self.log), sys.executable, "-m", "foldtune", name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            # Its own settings, which may point to other servers than the demo's, are not passed on.
            env=environment_without_settings() | environment,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._supervisor.poll() is None

    def stop(self) -> None:
        """Terminate the process and wait for its exit; the supervisor kills it after a grace period."""
        stop_supervisor(self._supervisor)
