"""Shows the progress of a fine-tune request until its model is announced."""

import time

from demo.console import ProgressBar
from demo.running_system import RunningSystem
from foldtune.events import FineTuneStatus, ModelReady, State
from foldtune.kafka import consumer
from foldtune.topics import Topic

POLL_MILLISECONDS = 500
# Many times the duration on two cores: beyond it, something hangs.
TIMEOUT_SECONDS = 30 * 60


class NoModelError(Exception):
    """The request produced no deployable model."""


def wait_for_model(system: RunningSystem, request_id: str, bar: ProgressBar) -> ModelReady:
    """Show the statuses of a request until its model is announced.

    Raises:
        NoModelError: the request was rejected, failed, was cancelled, was not promoted by the gate, or timed out.
        ProcessExitedError: a server or process of the system has exited.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    ready: ModelReady | None = None
    completed = False
    with consumer(system.settings.kafka, Topic.FINE_TUNE_STATUS, Topic.MODEL_READY) as events:
        while time.monotonic() < deadline:
            system.check_running()
            for records in events.poll(timeout_ms=POLL_MILLISECONDS).values():
                for record in records:
                    if record.topic == Topic.FINE_TUNE_STATUS.label:
                        status = FineTuneStatus.model_validate_json(record.value)
                        completed |= status.request_id == request_id and _show_status(status, bar)
                    else:
                        announcement = ModelReady.model_validate_json(record.value)
                        ready = announcement if announcement.request_id == request_id else ready
            if completed and ready:
                return ready
    raise NoModelError(f"no model after {TIMEOUT_SECONDS // 60} minutes")


def _show_status(status: FineTuneStatus, bar: ProgressBar) -> bool:
    """Show a status; true if the request has completed with a promoted model.

    Raises:
        NoModelError: the request is in another final state.
    """
    if status.state is State.COMPLETED and status.promoted is not False:
        return True
    if status.state.terminal:
        outcome = "not promoted by the gate" if status.state is State.COMPLETED else status.state
        raise NoModelError(f"the request was {outcome}: {'; '.join(status.reasons) or 'no reason given'}")
    if progress := status.progress:
        bar.update(progress.step, progress.steps, f"{status.state} · loss {progress.loss:.3f}")
    else:
        bar.note(status.state)
    return False
