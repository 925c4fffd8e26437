"""How a training process ends; launchers read it without importing torch."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a training process ends; the numbers are those of ``sysexits.h``."""

    DONE = 0
    # EX_USAGE: the same job fails in the same way, however often it is started. The trainer has published `failed`.
    IMPOSSIBLE = 64
    # EX_TEMPFAIL: the surroundings failed or took the machine away. The launcher starts it again, or reports.
    TRY_AGAIN = 75
