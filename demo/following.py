"""Follows a request from its acceptance to the announcement of its model."""

import time

from demo.screen import Bar
from demo.surroundings import Surroundings
from foldtune.events import FineTuneStatus, ModelReady, State
from foldtune.kafka import consumer
from foldtune.topics import Topic

POLL_MILLISECONDS = 500
# Many times what it takes on two cores; something hangs.
LIMIT_SECONDS = 30 * 60


class NoModelError(Exception):
    """The request came to its end, or to none, without a model to deploy."""


def follow(surroundings: Surroundings, request_id: str, bar: Bar) -> ModelReady:
    """Show the statuses of a request until its model is announced.

    Raises:
        NoModelError: it was rejected, failed, was cancelled or held back by the gate, or took too long.
        PartEndedError: a part that it needs does not run any more.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    ready: ModelReady | None = None
    completed = False
    with consumer(surroundings.settings.kafka, Topic.FINE_TUNE_STATUS, Topic.MODEL_READY) as events:
        while time.monotonic() < deadline:
            surroundings.check()
            for records in events.poll(timeout_ms=POLL_MILLISECONDS).values():
                for record in records:
                    if record.topic == Topic.FINE_TUNE_STATUS.label:
                        status = FineTuneStatus.model_validate_json(record.value)
                        completed |= status.request_id == request_id and _completed(status, bar)
                    else:
                        announced = ModelReady.model_validate_json(record.value)
                        ready = announced if announced.request_id == request_id else ready
            if completed and ready:
                return ready
    raise NoModelError(f"no model after {LIMIT_SECONDS // 60} minutes")


def _completed(status: FineTuneStatus, bar: Bar) -> bool:
    """Show a status; whether it is the good end.

    Raises:
        NoModelError: it is another end.
    """
    if status.state is State.COMPLETED and status.promoted is not False:
        return True
    if status.state.terminal:
        what = "held back by the gate" if status.state is State.COMPLETED else status.state
        raise NoModelError(f"the request was {what}: {'; '.join(status.reasons) or 'no reason given'}")
    if progress := status.progress:
        bar.show(progress.step, progress.steps, f"{status.state} · loss {progress.loss:.3f}")
    else:
        bar.note(status.state)
    return False
