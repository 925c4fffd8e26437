"""Reports a training's states and progress through the port ``EventSink``, which Kafka implements."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from queue import SimpleQueue
from typing import Any, Protocol

import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from foldtune.errors import TRANSIENT_ERRORS
from foldtune.events import FineTuneStatus, ModelReady, Progress, State, TrainingJob, now
from foldtune.kafka import Publisher
from foldtune.reports import publish_report
from foldtune.topics import Topic
from trainers.errors import InfrastructureFailedError

# Often enough for a person who watches, seldom enough for a compacted topic.
REPORT_SECONDS = 5.0
# How long the end of a training is sent again: after that, another run of the job publishes it.
PATIENCE_SECONDS = 300.0
MAX_WAIT_SECONDS = 15.0
# What was not sent by then is given up when the process ends.
CLOSE_SECONDS = 5.0

log = structlog.get_logger()


class EventSink(Protocol):
    """Publishes a training's events.

    Raises:
        InfrastructureFailedError: an event was not acknowledged.
    """

    def publish_status(self, status: FineTuneStatus) -> None:
        """Report a state to the coordinator, which publishes it unless the request is in a final state.

        Returns once a final state is acknowledged; others may be sent later, or be replaced by newer ones.
        """

    def publish_model_ready(self, event: ModelReady) -> None:
        """Publish that a model has passed the gate; returns once that is acknowledged."""


Connect = Callable[[], AbstractContextManager[Publisher]]
_Send = Callable[[Publisher], None]


class KafkaEventSink(EventSink):
    """Publishes to Kafka, in a thread of its own, so that brokers that do not answer hold up no training.

    Of the reports on the way, the newest is sent; one that fails is only logged. The end of a training is sent
    repeatedly for ``PATIENCE_SECONDS``. ``connect`` is called when there is something to send, until it succeeds.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._tasks: SimpleQueue[tuple[_Send, Future[None]] | None] = SimpleQueue()
        self._newest: FineTuneStatus | None = None
        self._thread = threading.Thread(target=self._work, name="reports", daemon=True)

    def publish_status(self, status: FineTuneStatus) -> None:
        if status.state.terminal:
            self._newest = None
            self._deliver(lambda publisher: publish_report(publisher, status))
            return
        self._newest = status
        self._enqueue(self._send_newest).add_done_callback(_log_failure)

    def publish_model_ready(self, event: ModelReady) -> None:
        self._deliver(lambda publisher: publisher.publish(Topic.MODEL_READY, event, key=event.model))

    def __enter__(self) -> "KafkaEventSink":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tasks.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _enqueue(self, send: _Send) -> Future[None]:
        done: Future[None] = Future()
        self._tasks.put((send, done))
        return done

    def _send_newest(self, publisher: Publisher) -> None:
        status, self._newest = self._newest, None
        if status:
            publish_report(publisher, status)

    def _deliver(self, send: _Send) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(TRANSIENT_ERRORS),
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_random_exponential(max=MAX_WAIT_SECONDS),
            before_sleep=lambda state: _log_failure(state.outcome) if state.outcome else None,
            reraise=True,
        )
        try:
            retrying(lambda: self._enqueue(send).result())
        except TRANSIENT_ERRORS as error:
            raise InfrastructureFailedError(str(error)) from error

    def _work(self) -> None:
        with ExitStack() as stack:
            publisher: Publisher | None = None
            while task := self._tasks.get():
                send, done = task
                try:
                    publisher = publisher or stack.enter_context(self._connect())
                    send(publisher)
                # For the thread that waits, or for the log.
                except BaseException as error:
                    done.set_exception(error)
                else:
                    done.set_result(None)


def _log_failure(done: Future[Any]) -> None:
    if error := done.exception():
        log.warning("report not published", error=str(error))


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
        """Publish a new state; ``details`` are further fields of the status.

        Raises:
            InfrastructureFailedError: it is a final state, and was not acknowledged.
        """
        log.info("training state changed", state=state.value)
        self._publish(self._status(state, details))
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
        self._publish(self._status(State.RUNNING, {"progress": progress}))

    def _publish(self, status: FineTuneStatus) -> None:
        try:
            self._sink.publish_status(status)
        except InfrastructureFailedError as error:
            # Hours of training are worth more than a report on the way.
            if status.state.terminal:
                raise
            log.warning("report not published", error=str(error))

    def _status(self, state: State, details: dict[str, object]) -> FineTuneStatus:
        request = self._job.request
        fields = {"request_id": request.request_id, "model": request.model, "state": state, "at": now()}
        return FineTuneStatus.model_validate({**fields, "warnings": tuple(self.warnings), **details})
