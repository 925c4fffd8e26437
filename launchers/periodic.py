"""One action, again and again in the background, while something else goes on."""

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


class Periodic:
    """Runs ``action`` every ``seconds`` in a thread of its own, from its making until ``stop``.

    An error of the action is logged and the action tried again; ``age`` tells for how long it has not succeeded.
    """

    def __init__(self, action: Callable[[], None], seconds: float) -> None:
        self._action = action
        self._seconds = seconds
        self._stopped = threading.Event()
        self._succeeded_at = time.monotonic()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    @property
    def age(self) -> float:
        """Seconds since the last success, or since the start."""
        return time.monotonic() - self._succeeded_at

    def stop(self) -> None:
        """End after the present action, and wait for that."""
        self._stopped.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.wait(self._seconds):
            started = time.monotonic()
            try:
                self._action()
            except Exception as error:  # the thread must live on whatever the store's client throws
                log.warning("background action failed", error=str(error))
            else:
                # From before the action: what is renewed counts from when it was sent, not from when it was answered.
                self._succeeded_at = started
