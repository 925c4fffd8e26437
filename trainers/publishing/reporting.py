"""How a training tells the world about itself: one small port, Kafka behind it, and the fake that ships for tests."""

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
    """Where a training's events go. Both calls return once the event is safe."""

    def status(self, status: FineTuneStatus) -> None:
        """Report what has become of the request; the coordinator tells the world, if it has not ended already."""

    def model_ready(self, event: ModelReady) -> None:
        """Publish that a model has passed the gate."""


class KafkaEventSink(EventSink):
    """Publishes on Kafka; raises ``InfrastructureFailedError`` where the brokers do not answer."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def status(self, status: FineTuneStatus) -> None:
        with _transient():
            publish_report(self._publisher, status)

    def model_ready(self, event: ModelReady) -> None:
        with _transient():
            self._publisher.publish(Topic.MODEL_READY, event, key=event.model)


@contextmanager
def _transient() -> Iterator[None]:
    try:
        yield
    except PublishError as error:
        raise InfrastructureFailedError(str(error)) from error


class RecordingEventSink(EventSink):
    """Keeps what it is told, for tests and for training without Kafka."""

    def __init__(self) -> None:
        self.statuses: list[FineTuneStatus] = []
        self.ready: list[ModelReady] = []

    def status(self, status: FineTuneStatus) -> None:
        self.statuses.append(status)

    def model_ready(self, event: ModelReady) -> None:
        self.ready.append(event)


class Reporter:
    """Reports one job: states at once, progress at most every ``REPORT_SECONDS``."""

    def __init__(self, announcer: EventSink, job: TrainingJob, clock: Callable[[], float] = time.monotonic) -> None:
        self.warnings: list[str] = list(job.warnings)
        self._announcer, self._job, self._clock = announcer, job, clock
        self._due = clock()

    def model_ready(self, event: ModelReady) -> None:
        """Publish the completion event."""
        self._announcer.model_ready(event)

    def warn(self, *warnings: str) -> None:
        """Warnings that every later status carries."""
        self.warnings += warnings
        for warning in warnings:
            log.warning("training warns", request_id=self._job.request.request_id, warning=warning)

    def state(self, state: State, **details: object) -> None:
        """Publish a new state."""
        log.info("training", request_id=self._job.request.request_id, state=state.value)
        self._announcer.status(self._status(state, details))
        self._due = self._clock() + REPORT_SECONDS

    def stepped(self, progress: Progress) -> None:
        """Publish and log a step, unless one was a moment ago."""
        last = progress.step == progress.steps
        if self._clock() < self._due and not last:
            return
        log.info(
            "step",
            request_id=self._job.request.request_id,
            step=f"{progress.step}/{progress.steps}",
            loss=round(progress.loss, 4),
            examples_per_second=round(progress.examples_per_second, 1),
            eta_seconds=round(progress.eta_seconds),
        )
        self._due = self._clock() + REPORT_SECONDS
        try:
            self._announcer.status(self._status(State.RUNNING, {"progress": progress}))
        except InfrastructureFailedError as error:
            # The hours of a training are worth more than one line about them.
            log.warning("progress not published", request_id=self._job.request.request_id, reason=str(error))

    def _status(self, state: State, details: dict[str, object]) -> FineTuneStatus:
        request = self._job.request
        about = {"request_id": request.request_id, "model": request.model, "state": state, "at": now()}
        return FineTuneStatus.model_validate({**about, "warnings": tuple(self.warnings), **details})
