"""How a launcher tells the coordinator, which tells the world, what has become of a job."""

from collections.abc import Callable

from foldtune.events import FineTuneStatus, State, TrainingJob, now
from foldtune.kafka import Publisher
from foldtune.topics import Topic
from launchers.port import Ending, Outcome

Report = Callable[[FineTuneStatus], None]


class StatusPublisher:
    """Reports to the coordinator."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def __call__(self, status: FineTuneStatus) -> None:
        self._publisher.publish(Topic.TRAINING_REPORTS, status, key=status.request_id, partition_by=status.model)


def status_of(job: TrainingJob, state: State, outcome: Outcome | None = None) -> FineTuneStatus:
    """The present state of a job, with what is known of its end."""
    told = outcome or Outcome(ending=Ending.SUCCEEDED)
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
