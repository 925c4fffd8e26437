"""The port that every launcher implements.

A run is started and then looked at: ``submit`` returns at once, ``poll`` tells how it ended. A subprocess is polled,
and so is a job of AWS Batch, whose ends also arrive as events; nobody holds a thread for the hours of a training.
"""

from dataclasses import dataclass
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
    """The one object key segment of a job: the same request has the same, on every launcher."""
    return request_segment(job.request.model, job.request.request_id)


class Ending(StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # The launcher was stopped, not the job at fault: does not count as an attempt.
    INTERRUPTED = "interrupted"


class RunOutcome(Model):
    """What became of a run, and whether another attempt may end better."""

    ending: Ending
    retryable: bool = False
    reasons: tuple[str, ...] = ()
    # The trainer refused the job and has published why: saying it again would say less.
    announced: bool = False
    log_uri: S3Uri | None = None
    log_url: WebAddress | None = None

    @property
    def final(self) -> bool:
        """Whether no other attempt follows, however many are left."""
        return self.ending in {Ending.SUCCEEDED, Ending.CANCELLED} or (
            self.ending is Ending.FAILED and not self.retryable
        )


class Launcher(Protocol):
    """Starts runs and tells how they ended. The ledger sees to it that none starts twice."""

    def submit(self, run: Run) -> None:
        """Start a run and return.

        Raises:
            LaunchError: it could not be started; nothing runs.
            RunBusyError: an earlier run of the same job has not ended yet; nothing was started, try again later.
        """

    def poll(self, run: Run) -> RunOutcome | None:
        """How a submitted run ended, the same at every call; ``None`` while it goes on."""

    def cancel(self, run: Run) -> None:
        """Ask a run to end, as cancelled; ``poll`` tells when it has. Without effect on one that has ended."""

    def interrupt(self, run: Run) -> None:
        """Like ``cancel``, but as interrupted: the job is to be run again."""
