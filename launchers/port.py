"""The port that every launcher implements.

A run is submitted and then polled: ``submit`` returns at once, and no thread waits for the hours of a training. What
differs between launchers beyond that is declared, so that ``execution.py`` is the same for all of them:

==============  ========================================================================================================
``detached``    Whether a run outlives the process that submitted it. If not, a claim is kept by heartbeats, and with
                its owner an attempt has died, so the next one may start. If so, a claim is a lease on submitting; an
                attempt whose owner died is taken over, and its run searched for (``find``) before it is submitted.
``retries``     Whether the service behind the launcher makes a job's attempts itself; the ledger then has one.
==============  ========================================================================================================
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from foldtune.errors import FoldtuneError
from foldtune.events import Model, S3Uri, TrainingJob, WebAddress
from foldtune.object_keys import request_segment


class LaunchError(FoldtuneError):
    """A run could not be started (run, reason):"""


class RunBusyError(FoldtuneError):
    """An earlier run of the same job has not ended yet:"""


@dataclass(frozen=True)
class Run:
    """One attempt at one job."""

    job: TrainingJob
    job_uri: str
    attempt: int

    @property
    def name(self) -> str:
        """Names the run on any launcher: made of letters, digits, ``-`` and ``_``, under 128 characters."""
        return f"{job_segment(self.job)}-{self.attempt}"


def job_segment(job: TrainingJob) -> str:
    """The object key segment of a job: the same request has the same, on every launcher."""
    return request_segment(job.request.model, job.request.request_id)


class Ending(StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # The launcher was stopped, the job is not at fault: does not count as an attempt.
    INTERRUPTED = "interrupted"


class RunOutcome(Model):
    """How a run ended, and whether another attempt may succeed."""

    ending: Ending
    retryable: bool = False
    reasons: tuple[str, ...] = ()
    # The trainer refused the job and published the reasons, which a second report would lack.
    announced: bool = False
    log_uri: S3Uri | None = None
    log_url: WebAddress | None = None

    @property
    def final(self) -> bool:
        """Whether no other attempt follows, however many remain."""
        return self.ending in {Ending.SUCCEEDED, Ending.CANCELLED} or (
            self.ending is Ending.FAILED and not self.retryable
        )


@dataclass(frozen=True)
class RunStatus:
    """The present state of a submitted run: pending, ``running``, or ended with an ``outcome``."""

    running: bool = False
    outcome: RunOutcome | None = None
    # The page of the running attempt's log, where the service has one.
    log_url: str | None = None
    # For how long an ended run kept a rented machine, where that is known.
    machine_hours: float | None = None


class Launcher(Protocol):
    """Submits runs and reports their status. The ledger ensures that none is submitted twice."""

    detached: bool = False
    retries: bool = False
    # Of a detached launcher: a submission that was sent takes effect within this time or never, ...
    submit_timeout: timedelta = timedelta(0)
    # ... and ``find`` knows runs that ended up to this long ago.
    findable: timedelta = timedelta.max

    def submit(self, run: Run) -> None:
        """Start a run and return.

        Raises:
            LaunchError: it could not be started; nothing runs.
            RunBusyError: an earlier run of the same job has not ended yet; nothing was started, try again later.
        """

    def poll(self, run: Run) -> RunStatus | None:
        """The status of a run, ``None`` where no submission is on record; once it has an outcome, always the same."""

    def find(self, run: Run) -> bool:
        """Search for a run whose submission was cut short before it was recorded, and record it; ``False`` if none.

        Called on detached launchers only: with others, such a run died with its launcher.
        """

    def cancel(self, run: Run) -> None:
        """Ask a run to end, as cancelled; ``poll`` returns when it has. Without effect on one that has ended."""

    def interrupt(self, run: Run) -> None:
        """Like ``cancel``, but as interrupted: the job is to be run again."""


class Budget(Protocol):
    """Bounds what runs may cost."""

    def reserve(self, job: TrainingJob) -> RunOutcome | None:
        """Reserve the most that a job can cost, once; the outcome of a job that would exceed a bound."""

    def settle(self, job: TrainingJob, hours: float) -> None:
        """Replace a job's reservation, if any, with the cost of the ``hours`` that it took."""


class NoBudget(Budget):
    """For machines that cost nothing more when they train."""

    def reserve(self, job: TrainingJob) -> RunOutcome | None:  # noqa: ARG002
        return None

    def settle(self, job: TrainingJob, hours: float) -> None:
        pass
