"""Keeps events until the brokers have acknowledged them, and sends them again until then.

Events are sent at least once, which the worker's state does not notice: it knows each by its id.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kafka.errors import InvalidRecordError, InvalidTimestampError, MessageSizeTooLargeError, RecordListTooLargeError

from foldtune.client.log_batcher import CompleteBatch, LogBatcher
from foldtune.errors import TRANSIENT_ERRORS, BufferFullError, ClientClosedError, NoBrokerError, PublishError
from foldtune.events import ChatLog
from foldtune.kafka import Publisher
from foldtune.topics import Topic

# Not structlog: unconfigured, that writes to the program's stdout.
_log = logging.getLogger(__name__)

# Seconds between two attempts while nothing is acknowledged, doubled up to the second number.
_BACKOFF = (0.5, 5.0)
# How long ``close`` waits for the background thread, once it has given up the events that were not acknowledged.
_STOP_SECONDS = 5.0
# So many ids are named in an error; the rest is counted.
_NAMED_IDS = 10
# The brokers will never take such an event.
_REFUSALS = (InvalidRecordError, InvalidTimestampError, MessageSizeTooLargeError, RecordListTooLargeError)


@dataclass(eq=False)
class Message:
    """One message: an event, or a batch of logs; ``ids`` are those of its events.

    Without a key it goes to every partition. With ``once``, its caller waits for it and it is not sent again.
    """

    topic: Topic
    value: bytes
    ids: Sequence[str]
    key: str | None = None
    once: bool = False
    size: int = 0
    settled: bool = False
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.size = self.size or len(self.value)


class SendBuffer:
    """Thread-safe; a background thread connects and sends."""

    def __init__(
        self,
        connect: Callable[[], Publisher],
        batcher: LogBatcher,
        *,
        max_bytes: int,
        block: float,
        delivery: float,
    ) -> None:
        """``max_bytes`` limits what is not yet acknowledged, ``block`` is the longest wait for room in it.

        ``delivery`` is how long ``publish``, ``flush`` and ``close`` wait for acknowledgements; times are in seconds.
        """
        self._connect = connect
        self._batcher = batcher
        self._max_bytes = max_bytes
        self._block = block
        self._delivery = delivery
        self._changed = threading.Condition()
        self._queue: list[Message] = []
        self._bytes = 0
        self._publisher: Publisher | None = None
        # Why the last attempt failed, and when the last one without any connection began.
        self._error: Exception | None = None
        self._no_broker_at = -math.inf
        self._acknowledged_at = 0.0
        self._resume_at, self._backoff = 0.0, _BACKOFF[0]
        self._lost: list[str] = []
        self._lost_error: PublishError | None = None
        self._closed = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="foldtune-send", daemon=True)
        self._thread.start()

    # ── For callers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def add_log(self, log: ChatLog) -> None:
        """Take one log; raises like ``put``."""
        size = len(log.encode()) + 1
        with self._changed:
            self._reserve(size)
            self._enqueue(map(_batch_message, self._batcher.add(log, size, time.monotonic())))

    def put(self, message: Message) -> None:
        """Take one message.

        Raises:
            BufferFullError: there was no room for it in time.
            PublishError: the brokers have refused an earlier one, which is named; this one is not taken.
        """
        with self._changed:
            self._reserve(message.size)
            self._enqueue([message])

    def publish(self, message: Message) -> None:
        """Send one message once, and wait for its acknowledgement.

        Raises:
            NoBrokerError: no broker has ever answered.
            PublishError: it was not acknowledged in time, or refused; it is not sent any more.
        """
        message.once = True
        self.put(message)
        with self._changed:
            self._wait([message], lambda: 0.0)
            if not message.settled:
                reason = f"not acknowledged within {self._delivery:g} s, and may still arrive"
                unreachable = isinstance(self._error, NoBrokerError)
                message.error = self._error if unreachable else PublishError(message.topic.label, reason)
                self._drop([message])
            if isinstance(message.error, NoBrokerError | PublishError):
                # A new one, since several threads may wait for the same attempt.
                raise type(message.error)(*message.error.args) from message.error
            if message.error:
                raise PublishError(message.topic.label, message.error) from message.error

    def flush(self) -> None:
        """Wait until everything taken before is acknowledged.

        Raises:
            PublishError: nothing was acknowledged for the delivery time; what is missing is named, kept and sent again.
                Or the brokers have refused events, which are named and lost.
        """
        with self._changed:
            self._raise_if_closed_or_lost()
            self._enqueue(map(_batch_message, self._batcher.take()))
            waiting = list(self._queue)
            self._wait(waiting, lambda: self._acknowledged_at)
            self._raise_if_lost()
            if missing := [message for message in waiting if not message.settled]:
                raise self._not_acknowledged(missing, "not acknowledged yet, and sent again")
            # Refused, which another thread may have been told, or lost because another one has closed the client.
            if lost := [message for message in waiting if message.error]:
                raise _publish_error(lost, lost[0].error, "lost")

    def close(self) -> None:
        """Take nothing more, and wait for the acknowledgements of what was taken.

        Raises:
            PublishError: some did not come within the delivery time, or were refused; those events are named and lost.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._enqueue(map(_batch_message, self._batcher.take()))
            self._wait(list(self._queue), lambda: 0.0)
            self._abandoned = True
            if missing := [message for message in self._queue if not message.once]:
                self._lose(missing, self._not_acknowledged(missing, "not acknowledged, and lost"))
            for message in self._queue:
                message.error = PublishError(message.topic.label, "the client was closed")
            self._drop(self._queue)
        if self._publisher:
            self._publisher.abort()
        self._thread.join(_STOP_SECONDS)
        with self._changed:
            self._raise_if_lost()

    # All below but the last section are called with the lock held.

    def _reserve(self, size: int) -> None:
        deadline = time.monotonic() + self._block
        self._raise_if_closed_or_lost()
        while self._bytes and self._bytes + size > self._max_bytes:
            if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                raise BufferFullError(
                    f"{self._bytes} bytes are not acknowledged yet, at most {self._max_bytes}", self._error or "waiting"
                )
            self._raise_if_closed_or_lost()
        self._bytes += size

    def _enqueue(self, messages: Iterable[Message]) -> None:
        self._queue += messages
        self._changed.notify_all()

    def _wait(self, messages: Sequence[Message], extended: Callable[[], float]) -> None:
        """Wait until all are settled, at most the delivery time from now or from the later time of ``extended``.

        An address at which no broker has ever answered is reported after one attempt.
        """
        began = time.monotonic()
        for message in messages:
            while not message.settled:
                remaining = max(began, extended()) + self._delivery - time.monotonic()
                if remaining <= 0 or self._no_broker_at >= began:
                    return
                self._changed.wait(remaining)

    def _drop(self, messages: Sequence[Message]) -> None:
        """Settle messages, and make room."""
        for message in messages:
            message.settled = True
            self._bytes -= message.size
        self._queue = [message for message in self._queue if not message.settled]
        self._changed.notify_all()

    def _lose(self, messages: Sequence[Message], error: PublishError) -> None:
        """Log the loss, and have the next call raise it."""
        _log.error("events lost: %s", error)
        self._lost += [event_id for message in messages for event_id in message.ids]
        self._lost_error = error

    def _raise_if_lost(self) -> None:
        ids, self._lost = self._lost, []
        error, self._lost_error = self._lost_error, None
        if error:
            raise PublishError(*error.args[:2], f"lost: {_named(ids)}")

    def _raise_if_closed_or_lost(self) -> None:
        if self._closed:
            raise ClientClosedError
        self._raise_if_lost()

    def _not_acknowledged(self, messages: Sequence[Message], what: str) -> PublishError:
        return _publish_error(messages, self._error or f"no answer within {self._delivery:g} s", what)

    # ── The background thread ────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while window := self._next_window():
            errors: Sequence[Exception | None]
            began = time.monotonic()
            try:
                if self._publisher is None:
                    self._publisher = self._connect()
                if self._abandoned:
                    break
                errors = _send(self._publisher, window)
            except Exception as error:
                errors = [error] * len(window)
                if isinstance(error, NoBrokerError):
                    self._no_broker_at = began
            self._settle(window, errors)
        if self._publisher:
            self._publisher.abort()

    def _next_window(self) -> list[Message]:
        """Wait for messages to send; none once there will be no more."""
        with self._changed:
            while not self._abandoned:
                now = time.monotonic()
                self._queue += map(_batch_message, self._batcher.take(now))
                if self._queue and now >= self._resume_at:
                    return list(self._queue)
                if self._closed and not self._queue:
                    break
                next_at = min(self._batcher.next_due, self._resume_at if self._queue else math.inf)
                self._changed.wait(None if next_at == math.inf else max(next_at - now, 0.001))
            return []

    def _settle(self, window: Sequence[Message], errors: Sequence[Exception | None]) -> None:
        with self._changed:
            behind: set[tuple[Topic, str | None]] = set()
            done, kept = [], []
            for message, error in zip(window, errors, strict=True):
                message.error = error
                order = message.topic, message.key
                # Of two events of equal time the later record counts, so one that arrived follows those before it.
                if not message.once and (order in behind if error is None else _may_succeed(error)):
                    behind.add(order)
                    kept.append(message)
                elif not message.settled:
                    done.append(message)
            self._error = next((message.error for message in kept + done if message.error), None)
            self._drop(done)
            if refused := [message for message in done if message.error and not message.once]:
                self._lose(refused, _publish_error(refused, refused[0].error, "refused, and lost"))
            if any(message.error is None for message in done):
                self._acknowledged_at, self._backoff = time.monotonic(), _BACKOFF[0]
            if kept and not self._abandoned:
                self._resume_at = time.monotonic() + self._backoff
                self._backoff = min(2 * self._backoff, _BACKOFF[1])
                _log.warning("events are sent again: %s", self._not_acknowledged(kept, "not acknowledged"))


def _send(publisher: Publisher, window: Sequence[Message]) -> list[Exception | None]:
    """Send messages and wait for the brokers; why each of them failed."""
    sent: list[list[Any] | Exception] = []
    # Each message of a topic that brokers do not tell of would wait for it anew.
    unknown: dict[Topic, Exception] = {}
    for message in window:
        try:
            if error := unknown.get(message.topic):
                sent.append(error)
            elif message.key is None:
                sent.append(publisher.broadcast_raw(message.topic, message.value))
            else:
                sent.append([publisher.send_raw(message.topic, message.value, key=message.key)])
        except Exception as error:
            sent.append(error)
            if _may_succeed(error):
                unknown[message.topic] = error
    with suppress(PublishError):
        publisher.flush()
    return [futures if isinstance(futures, Exception) else _error_of(futures) for futures in sent]


def _error_of(futures: Sequence[Any]) -> Exception | None:
    for future in futures:
        if not future.is_done:
            return TimeoutError("no acknowledgement")
        if future.failed():
            error: Exception = future.exception
            return error
    return None


def _may_succeed(error: Exception) -> bool:
    reason = error.__cause__ if isinstance(error, PublishError) else error
    return isinstance(reason, TRANSIENT_ERRORS) and not isinstance(reason, _REFUSALS)


def _batch_message(batch: CompleteBatch) -> Message:
    ids = [log.log_id for log in batch.logs]
    return Message(Topic.CHAT_LOGS, batch.event.encode(), ids, key=batch.folder_id, size=batch.size)


def _publish_error(messages: Sequence[Message], reason: object, what: str) -> PublishError:
    if isinstance(reason, PublishError):
        reason = reason.__cause__ or reason
    ids = [event_id for message in messages for event_id in message.ids]
    return PublishError(messages[0].topic.label, reason, f"{what}: {_named(ids)}")


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED_IDS} more" if len(ids) > _NAMED_IDS else ""
    return f"{len(ids)} ({', '.join(ids[:_NAMED_IDS])}{more})"
