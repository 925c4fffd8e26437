"""Outcomes of runs from the trainer's exit codes (``trainers.exit_codes``)."""

import signal

from launchers.port import Ending, RunOutcome
from trainers.exit_codes import ExitCode


def outcome_of(code: int, stopping: RunOutcome | None = None) -> RunOutcome:
    """The outcome of an exit code (``-N`` for signal N); ``stopping`` is that of a process that was asked to end."""
    if code == ExitCode.DONE:
        return RunOutcome(ending=Ending.SUCCEEDED)
    if code == ExitCode.IMPOSSIBLE:
        return RunOutcome(ending=Ending.FAILED, announced=True, reasons=("the trainer refused the job",))
    if stopping:
        return stopping
    if code < 0:
        reason = f"the trainer was ended by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            reason += ", possibly out of memory"
    elif code == ExitCode.TRY_AGAIN:
        reason = "the trainer could not finish and requested a retry"
    else:
        reason = f"the trainer ended with exit code {code}"
    return RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(reason,))
