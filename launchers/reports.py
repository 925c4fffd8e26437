"""How a launcher tells the coordinator, which tells the world, what has become of a job."""

from collections.abc import Callable

from foldtune.events import FineTuneStatus, State, TrainingJob, now
from launchers.port import Ending, RunOutcome

Report = Callable[[FineTuneStatus], None]


def status_of(job: TrainingJob, state: State, outcome: RunOutcome | None = None) -> FineTuneStatus:
    """The present state of a job, with what is known of its end."""
    told = outcome or RunOutcome(ending=Ending.SUCCEEDED)
    return FineTuneStatus(
        request_id=job.request.request_id,
        model=job.request.model,
        state=state,
        at=now(),
        reasons=told.reasons,
        warnings=job.warnings,
        retryable=told.retryable,
        log_uri=told.log_uri,
        log_url=told.log_url,
    )
