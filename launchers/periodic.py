"""An action that is repeated in the background."""

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


def boottime() -> float:
    """Seconds, by a clock that goes on while the machine is suspended: others count that time too."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Periodic:
    """Runs ``action`` every ``seconds`` in a thread of its own until ``stop``.

    An error of the action is logged, with ``name`` and ``ids``, and the action retried; ``age`` is the time since its
    last success.
    """

    def __init__(self, action: Callable[[], None], seconds: float, *, name: str, **ids: str | int) -> None:
        self._action = action
        self._seconds = seconds
        self._log = log.bind(action=name, **ids)
        self._stopped = threading.Event()
        self._succeeded_at = boottime()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def age(self) -> float:
        """Seconds since the last success, or since the start."""
        return boottime() - self._succeeded_at

    def stop(self) -> None:
        """Stop after the present action, and wait for it."""
        self._stopped.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.wait(self._seconds):
            started = boottime()
            try:
                self._action()
            except Exception as error:  # the thread must survive whatever the store's client raises
                self._log.warning("background action failed, will retry", error=str(error))
            else:
                # From before the action: a renewal counts from when it was sent, not from when it was answered.
                self._succeeded_at = started
