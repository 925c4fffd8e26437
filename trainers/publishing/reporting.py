"""Reports a training's states and progress through the port ``EventSink``, which Kafka implements."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from foldtune.errors import PublishError
from foldtune.events import FineTuneStatus, ModelReady, Progress, State, TrainingJob, now
from foldtune.kafka import Publisher
from foldtune.reports import publish_report
from foldtune.topics import Topic
from trainers.errors import InfrastructureFailedError

# Often enough for a person who watches, seldom enough for a compacted topic.
REPORT_SECONDS = 5.0

log = structlog.get_logger()


class EventSink(Protocol):
    """Publishes a training's events; both calls return once the event is acknowledged.

    Raises:
        InfrastructureFailedError: it was not.
    """

    def publish_status(self, status: FineTuneStatus) -> None:
        """Report a state to the coordinator, which publishes it unless the request is in a final state."""

    def publish_model_ready(self, event: ModelReady) -> None:
        """Publish that a model has passed the gate."""


class KafkaEventSink(EventSink):
    """Publishes to Kafka."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def publish_status(self, status: FineTuneStatus) -> None:
        with _publish_errors_as_trainer_errors():
            publish_report(self._publisher, status)

    def publish_model_ready(self, event: ModelReady) -> None:
        with _publish_errors_as_trainer_errors():
            self._publisher.publish(Topic.MODEL_READY, event, key=event.model)


@contextmanager
def _publish_errors_as_trainer_errors() -> Iterator[None]:
    try:
        yield
    except PublishError as error:
        raise InfrastructureFailedError(str(error)) from error


class Reporter:
    """Reports one job: states at once, progress at most every ``REPORT_SECONDS``."""

    def __init__(self, sink: EventSink, job: TrainingJob, clock: Callable[[], float] = time.monotonic) -> None:
        self.warnings: list[str] = list(job.warnings)
        self._sink, self._job, self._clock = sink, job, clock
        self._due_at = clock()

    def publish_model_ready(self, event: ModelReady) -> None:
        """Publish the completion event."""
        self._sink.publish_model_ready(event)

    def warn(self, *warnings: str) -> None:
        """Log the warnings, and add them to every later status."""
        self.warnings += warnings
        for warning in warnings:
            log.warning("training warning", warning=warning)

    def publish_state(self, state: State, **details: object) -> None:
        """Publish a new state; ``details`` are further fields of the status."""
        log.info("training state changed", state=state.value)
        self._sink.publish_status(self._status(state, details))
        self._due_at = self._clock() + REPORT_SECONDS

    def on_step(self, progress: Progress) -> None:
        """Log and publish the progress, unless the last report was a moment ago; the last step is always reported."""
        last = progress.step == progress.steps
        if self._clock() < self._due_at and not last:
            return
        log.info(
            "training step",
            step=progress.step,
            steps=progress.steps,
            loss=round(progress.loss, 4),
            examples_per_second=round(progress.examples_per_second, 1),
            eta_seconds=round(progress.eta_seconds),
        )
        self._due_at = self._clock() + REPORT_SECONDS
        try:
            self._sink.publish_status(self._status(State.RUNNING, {"progress": progress}))
        except InfrastructureFailedError as error:
            # Hours of training are worth more than one progress report.
            log.warning("progress not published", error=str(error))

    def _status(self, state: State, details: dict[str, object]) -> FineTuneStatus:
        request = self._job.request
        fields = {"request_id": request.request_id, "model": request.model, "state": state, "at": now()}
        return FineTuneStatus.model_validate({**fields, "warnings": tuple(self.warnings), **details})
