"""A webhook's queue: notices in their order, each tried until it is taken or too old."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from foldtune.settings import Webhook
from notifications import metrics
from notifications.notices import Notice
from notifications.webhook import DeliveryError, post

log = structlog.get_logger(__name__)

MAX_WAIT_SECONDS = 60.0
# Of one webhook; then the earliest are given up, or the others would wait for it.
MAX_WAITING = 5_000


@dataclass(frozen=True)
class _Entry:
    notice: Notice
    until: float
    settled: Callable[[], object]


class DeliveryQueue:
    """Delivers to one webhook, in a thread of its own: one that does not answer holds up no other.

    A notice is given up ``retry_seconds`` after it was queued, and so are those that waited behind it: an endpoint that
    is down for a day costs each notice that much, not the sum.
    """

    def __init__(self, webhook: Webhook, retry_seconds: float, stop: threading.Event) -> None:
        self._webhook, self._retry_seconds, self._stop = webhook, retry_seconds, stop
        self._entries: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._labels = (webhook.name,)
        metrics.begin(webhook.name)
        metrics.WAITING.labels(*self._labels).set_function(lambda: len(self._entries))
        self._thread = threading.Thread(target=self._run, name=f"webhook {webhook.name}", daemon=True)
        self._thread.start()

    def wants(self, notice: Notice) -> bool:
        """Whether the webhook is told of such a notice."""
        models = self._webhook.models
        return notice.type in self._webhook.notices and (not models or notice.model in models)

    def put(self, notice: Notice, settled: Callable[[], object]) -> None:
        """Queue a notice; ``settled`` is called once it is delivered or given up, not if this process ends before."""
        displaced = None
        with self._changed:
            self._entries.append(_Entry(notice, time.monotonic() + self._retry_seconds, settled))
            if len(self._entries) > MAX_WAITING:
                # The first is being delivered.
                displaced = self._entries[1]
                del self._entries[1]
            self._changed.notify()
        if displaced:
            self._give_up(displaced.notice, f"{MAX_WAITING} notices wait")
            displaced.settled()

    def join(self, seconds: float) -> None:
        """Wait for an attempt that is under way, once ``stop`` is set."""
        with self._changed:
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                if not self._entries:
                    self._changed.wait(1.0)
                    continue
            entry = self._entries[0]
            if self._deliver(entry):
                with self._changed:
                    self._entries.popleft()
                entry.settled()

    def _deliver(self, entry: _Entry) -> bool:
        """Whether the notice is settled; false if ``stop`` was set before."""
        retrying = Retrying(
            sleep=sleep_using_event(self._stop),
            stop=lambda state: time.monotonic() >= entry.until or stop_when_event_set(self._stop)(state),
            wait=wait_random_exponential(max=MAX_WAIT_SECONDS),
            # A file of a secret may be replaced at this moment.
            retry=retry_if_exception_type((DeliveryError, OSError, ValueError)),
            before_sleep=self._log_failure,
        )
        try:
            retrying(post, self._webhook, entry.notice)
        except RetryError as failed:
            if self._stop.is_set():
                return False
            self._give_up(entry.notice, str(failed.last_attempt.exception()))
        else:
            metrics.DELIVERED.labels(*self._labels).inc()
            log.info("notice delivered", **self._source(entry.notice))
        return True

    def _give_up(self, notice: Notice, error: str) -> None:
        metrics.GIVEN_UP.labels(*self._labels).inc()
        log.warning("notice given up", **self._source(notice), error=error)

    def _source(self, notice: Notice) -> dict[str, str]:
        return {"webhook": self._webhook.name, "notice": notice.id, "kind": notice.type.value}

    def _log_failure(self, state: RetryCallState) -> None:
        metrics.FAILED.labels(*self._labels).inc()
        error = state.outcome.exception() if state.outcome else None
        log.warning("notice not delivered, will retry", webhook=self._webhook.name, error=str(error))
