"""Collects chat logs into one envelope a folder: a message each costs the broker and the worker more than the log.

A log waits at most the linger time. What was not delivered is raised at the next call, never dropped in silence.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from foldtune.errors import ClientClosedError, InfrastructureError
from foldtune.events import ChatLog, ChatLogBatch

# What surrounds the logs of an envelope, with a folder id of the longest kind (256 characters, escaped).
ENVELOPE_BYTES = 2 * 1024

Send = Callable[[str, ChatLog | ChatLogBatch], None]


@dataclass
class _Folder:
    due: float
    logs: list[ChatLog] = field(default_factory=list)
    size: int = ENVELOPE_BYTES

    def add(self, log: ChatLog, size: int) -> None:
        self.logs.append(log)
        self.size += size


class LogBatcher:
    """Thread-safe. ``send`` hands one message over, ``flush`` waits until all are acknowledged."""

    def __init__(self, send: Send, flush: Callable[[], None], *, count: int, max_bytes: int, linger: float) -> None:
        """``count`` and ``max_bytes`` bound one envelope; ``linger`` is in seconds."""
        self._send = send
        self._flush = flush
        self._count = count
        self._max_bytes = max_bytes
        self._linger = linger
        self._folders: dict[str, _Folder] = {}
        self._changed = threading.Condition(threading.RLock())
        # Waiting for the brokers must not keep the agent from handing over its next log.
        self._flushing = threading.Lock()
        self._error: InfrastructureError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._send_when_due, name="foldtune-linger", daemon=True)
        self._thread.start()

    def add(self, log: ChatLog) -> None:
        """Take one log; raises ``PublishError`` where an earlier one could not be delivered."""
        size = len(log.encode()) + 1
        with self._changed:
            self._check()
            folder = self._folders.get(log.folder_id)
            if folder and folder.size + size > self._max_bytes:
                self._release(log.folder_id)
                folder = None
            if folder is None:
                folder = self._folders[log.folder_id] = _Folder(time.monotonic() + self._linger)
                self._changed.notify()
            folder.add(log, size)
            if len(folder.logs) >= self._count:
                self._release(log.folder_id)

    def flush(self) -> None:
        """Send what waits, and return when the brokers have it; raises ``PublishError``."""
        with self._changed:
            self._check()
            self._release_all()
        self._acknowledged()

    def close(self) -> None:
        """Flush, and take nothing more; raises like ``flush``."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._thread.join()
        with self._changed:
            self._release_all()
        self._acknowledged()

    def _check(self) -> None:
        if self._closed:
            raise ClientClosedError
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error:
            raise error

    def _acknowledged(self) -> None:
        with self._flushing:
            self._flush()
        with self._changed:
            self._raise_error()

    def _release_all(self) -> None:
        for folder_id in list(self._folders):
            self._release(folder_id)

    def _release(self, folder_id: str) -> None:
        logs = self._folders.pop(folder_id).logs
        self._send(folder_id, logs[0] if len(logs) == 1 else ChatLogBatch(folder_id=folder_id, logs=tuple(logs)))

    def _send_when_due(self) -> None:
        while self._released_when_due():
            try:
                with self._flushing:
                    self._flush()
            except InfrastructureError as error:
                self._error = error

    def _released_when_due(self) -> bool:
        """Wait until a folder has waited long enough and send it; ``False`` once closed."""
        with self._changed:
            while not self._closed:
                due = [name for name, folder in self._folders.items() if folder.due <= time.monotonic()]
                try:
                    for folder_id in due:
                        self._release(folder_id)
                except InfrastructureError as error:
                    self._error = error
                if due:
                    return True
                nearest = min((folder.due for folder in self._folders.values()), default=None)
                self._changed.wait(None if nearest is None else max(nearest - time.monotonic(), 0.001))
            return False
