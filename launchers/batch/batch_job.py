"""A job as AWS Batch describes it, in the responses of DescribeJobs and in its state change events alike.

Unknown properties are ignored: Batch adds some from time to time.
"""

import signal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from launchers.port import Ending, RunOutcome
from launchers.run_outcomes import outcome_of

_TIMED_OUT = "Job attempt duration exceeded timeout"
# A container that was ended by a signal exits with this plus the signal's number.
_SIGNAL_EXIT = 128


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel)


class Container(_Part):
    """An attempt's container: how it exited and where its log is."""

    exit_code: int | None = None
    reason: str | None = None
    log_stream_name: str | None = None


class BatchAttempt(_Part):
    """One of the attempts that Batch makes itself; times in milliseconds."""

    container: Container = Container()
    started_at: int | None = None
    stopped_at: int | None = None


class BatchJob(_Part):
    """As much of a job as its status depends on."""

    job_arn: str
    job_id: str
    job_name: str
    status: str
    status_reason: str | None = None
    attempts: tuple[BatchAttempt, ...] = ()
    container: Container = Container()
    parameters: dict[str, str] = {}

    @property
    def ended(self) -> bool:
        """Whether this is a final status: no attempt follows."""
        return self.status in {"SUCCEEDED", "FAILED"}

    @property
    def machine_hours(self) -> float:
        """For how long its attempts have kept a machine, as far as Batch reports it."""
        spans = ((attempt.started_at, attempt.stopped_at) for attempt in self.attempts)
        return sum((stopped - started) / 3_600_000 for started, stopped in spans if started and stopped)

    def outcome(self, stopping: RunOutcome | None = None) -> RunOutcome | None:
        """How it ended, if it has; ``stopping`` is the outcome of a job that was asked to end."""
        if not self.ended:
            return None
        if self.status == "SUCCEEDED":
            return RunOutcome(ending=Ending.SUCCEEDED)
        outcome = self._failure(stopping)
        of_batch = (f"AWS Batch: {reason}" for reason in (self._last.reason, self.status_reason) if reason)
        reasons = tuple(dict.fromkeys((*outcome.reasons, *of_batch)))
        return outcome.model_copy(update={"reasons": reasons})

    def log_url(self, group: str) -> str | None:
        """The console's page of the newest attempt's log, once there is one."""
        if not self._newest.log_stream_name:
            return None
        region = self.job_arn.split(":")[3]
        # The console decodes what follows the hash twice, and takes a dollar sign for the second percent sign.
        names = (
            quote(quote(name, safe=""), safe="").replace("%", "$") for name in (group, self._newest.log_stream_name)
        )
        page = f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}"
        return f"{page}#logsV2:log-groups/log-group/{'/log-events/'.join(names)}"

    @property
    def _newest(self) -> Container:
        # Before the end, ``attempts`` are those that have ended.
        return self._last if self.ended else self.container

    @property
    def _last(self) -> Container:
        return self.attempts[-1].container if self.attempts else self.container

    def _failure(self, stopping: RunOutcome | None) -> RunOutcome:
        if self.status_reason == _TIMED_OUT and not stopping:
            return RunOutcome(ending=Ending.FAILED, reasons=("exceeded max_seconds",))
        code = self._last.exit_code
        if code is None:
            # It never ran, or its machine was taken away.
            return stopping or RunOutcome(ending=Ending.FAILED, retryable=True)
        number = code - _SIGNAL_EXIT
        return outcome_of(-number if number in set(signal.Signals) else code, stopping)
