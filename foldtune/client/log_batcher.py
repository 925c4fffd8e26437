"""Batches chat logs by folder: one message per log would cost broker and worker more than the log itself."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from foldtune.events import ChatLog, ChatLogBatch

# Size of a batch without its logs, with a folder id of the maximum length (256 characters, escaped).
ENVELOPE_BYTES = 2 * 1024


class CompleteBatch(NamedTuple):
    """The logs of one message, and the sum of their sizes."""

    folder_id: str
    logs: tuple[ChatLog, ...]
    size: int

    @property
    def event(self) -> ChatLog | ChatLogBatch:
        """The message; a single log needs no envelope."""
        return self.logs[0] if len(self.logs) == 1 else ChatLogBatch(folder_id=self.folder_id, logs=self.logs)


@dataclass
class _OpenBatch:
    due: float
    logs: list[ChatLog] = field(default_factory=list)
    size: int = 0


class LogBatcher:
    """The open batches. Not thread-safe; times are the caller's, in seconds."""

    def __init__(self, *, count: int, max_bytes: int, linger: float) -> None:
        """``count`` and ``max_bytes`` limit one batch; ``linger`` is how long a log waits for others, in seconds."""
        self._count = count
        self._max_bytes = max_bytes - ENVELOPE_BYTES
        self._linger = linger
        # In the order of their due times, since all linger equally long.
        self._batches: dict[str, _OpenBatch] = {}

    @property
    def next_due(self) -> float:
        """When the next batch is due; infinity without one."""
        return next((batch.due for batch in self._batches.values()), math.inf)

    def add(self, log: ChatLog, size: int, now: float) -> list[CompleteBatch]:
        """Add a log; the batches that are complete by it."""
        complete = []
        batch = self._batches.get(log.folder_id)
        if batch and batch.size + size > self._max_bytes:
            complete.append(self._take(log.folder_id))
            batch = None
        if batch is None:
            batch = self._batches[log.folder_id] = _OpenBatch(now + self._linger)
        batch.logs.append(log)
        batch.size += size
        if len(batch.logs) >= self._count:
            complete.append(self._take(log.folder_id))
        return complete

    def take(self, now: float = math.inf) -> list[CompleteBatch]:
        """Remove the batches that are due; all of them without a time."""
        return [self._take(folder_id) for folder_id, batch in list(self._batches.items()) if batch.due <= now]

    def _take(self, folder_id: str) -> CompleteBatch:
        batch = self._batches.pop(folder_id)
        return CompleteBatch(folder_id, tuple(batch.logs), batch.size)
