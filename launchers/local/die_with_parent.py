"""Execs a program that dies with its parent: ``python -m launchers.local.die_with_parent PARENT_PID COMMAND…``.

Linux keeps the parent-death signal across ``exec``, so that not even ``kill -9`` of the launcher leaves a training
behind. It is set here, and not between fork and exec, where a program with threads must not run Python.
"""

import ctypes
import os
import signal
import sys

from trainers.exit_codes import ExitCode

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the parent-death signal, check that the parent is still alive, and exec the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that died before the call sends no signal.
    if os.getppid() != int(parent):
        sys.exit(ExitCode.TRY_AGAIN)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
