"""Batches chat logs by folder: one message per log would cost broker and worker more than the log itself.

A log waits at most the linger time. A failed delivery is raised at the next call, never dropped silently.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from foldtune.errors import ClientClosedError
from foldtune.events import ChatLog, ChatLogBatch

# Size of a batch without its logs, with a folder id of the maximum length (256 characters, escaped).
ENVELOPE_BYTES = 2 * 1024

Send = Callable[[str, ChatLog | ChatLogBatch], None]


@dataclass
class _Batch:
    due: float
    logs: list[ChatLog] = field(default_factory=list)
    size: int = ENVELOPE_BYTES

    def add(self, log: ChatLog, size: int) -> None:
        self.logs.append(log)
        self.size += size


class LogBatcher:
    """Thread-safe. ``send`` enqueues one message, ``flush`` waits until all are acknowledged."""

    def __init__(self, send: Send, flush: Callable[[], None], *, count: int, max_bytes: int, linger: float) -> None:
        """``count`` and ``max_bytes`` limit one batch; ``linger`` is in seconds."""
        self._send = send
        self._flush = flush
        self._count = count
        self._max_bytes = max_bytes
        self._linger = linger
        self._batches: dict[str, _Batch] = {}
        self._changed = threading.Condition(threading.RLock())
        # Separate from the lock of the batches: waiting for acknowledgements must not block ``add``.
        self._flushing = threading.Lock()
        self._error: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._send_when_due, name="foldtune-linger", daemon=True)
        self._thread.start()

    def add(self, log: ChatLog) -> None:
        """Add one log; raises ``PublishError`` if an earlier one was not delivered."""
        size = len(log.encode()) + 1
        with self._changed:
            self._raise_if_closed_or_failed()
            batch = self._batches.get(log.folder_id)
            if batch and batch.size + size > self._max_bytes:
                self._send_batch(log.folder_id)
                batch = None
            if batch is None:
                batch = self._batches[log.folder_id] = _Batch(time.monotonic() + self._linger)
                self._changed.notify()
            batch.add(log, size)
            if len(batch.logs) >= self._count:
                self._send_batch(log.folder_id)

    def flush(self) -> None:
        """Send all batches and wait for the acknowledgements; raises ``PublishError``."""
        with self._changed:
            self._raise_if_closed_or_failed()
            self._send_all()
        self._wait_for_acknowledgements()

    def close(self) -> None:
        """Flush, and accept no more logs; raises like ``flush``."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._thread.join()
        with self._changed:
            self._send_all()
        self._wait_for_acknowledgements()

    def _raise_if_closed_or_failed(self) -> None:
        if self._closed:
            raise ClientClosedError
        self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        error, self._error = self._error, None
        if error:
            raise error

    def _wait_for_acknowledgements(self) -> None:
        with self._flushing:
            self._flush()
        with self._changed:
            self._raise_if_failed()

    def _send_all(self) -> None:
        for folder_id in list(self._batches):
            self._send_batch(folder_id)

    def _send_batch(self, folder_id: str) -> None:
        logs = self._batches.pop(folder_id).logs
        self._send(folder_id, logs[0] if len(logs) == 1 else ChatLogBatch(folder_id=folder_id, logs=tuple(logs)))

    # The background thread survives every error, not only transient ones; the next call raises it.

    def _send_when_due(self) -> None:
        while self._wait_and_send_due():
            try:
                with self._flushing:
                    self._flush()
            except Exception as error:
                self._error = error

    def _wait_and_send_due(self) -> bool:
        """Wait until a batch is due and send it; ``False`` once closed."""
        with self._changed:
            while not self._closed:
                due = [folder_id for folder_id, batch in self._batches.items() if batch.due <= time.monotonic()]
                try:
                    for folder_id in due:
                        self._send_batch(folder_id)
                except Exception as error:
                    self._error = error
                if due:
                    return True
                nearest = min((batch.due for batch in self._batches.values()), default=None)
                self._changed.wait(None if nearest is None else max(nearest - time.monotonic(), 0.001))
            return False
