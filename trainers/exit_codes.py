"""Exit codes of a training process; without torch, so that launchers can import them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a training process ended; the numbers are those of ``sysexits.h``."""

    DONE = 0
    # EX_USAGE, permanent: every attempt fails in the same way. The trainer has published `failed`.
    IMPOSSIBLE = 64
    # EX_TEMPFAIL, transient: infrastructure failed or the machine was reclaimed. The launcher retries or reports.
    TRY_AGAIN = 75
