"""The client: publishes events and requests, and reads statuses and models.

with FoldtuneClient(load_settings()) as client:
    client.log(ChatLog(...))
    client.request_fine_tune(FineTuneRequested(...))
    status = client.wait(request_id, timeout=timedelta(hours=1))
"""

import logging
import threading
import time
from collections.abc import Generator
from datetime import timedelta
from functools import partial
from typing import Literal, Self, TypeVar, overload

from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata
from pydantic import ValidationError

from foldtune.bounds import Rules, violations
from foldtune.client.log_batcher import ENVELOPE_BYTES, LogBatcher
from foldtune.client.reviews import Reviews, Waiting
from foldtune.client.send_buffer import Message, SendBuffer
from foldtune.errors import ClientClosedError, OutOfBoundsError, StatusTimeoutError
from foldtune.events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Event,
    Feedback,
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    ModelReady,
    ModelReviewed,
    PolicyDecided,
    RetrainingPolicy,
    now,
)
from foldtune.kafka import POLL_MILLISECONDS, Publisher, consumer
from foldtune.policy import MAX_POLICY_BYTES
from foldtune.reasons import explain
from foldtune.request_ids import RESERVED, is_reserved
from foldtune.settings import Settings
from foldtune.spellings import nfc
from foldtune.status_order import StatusRecord, merge_status
from foldtune.topic_reader import read
from foldtune.topics import Topic, review_key

# Not structlog: unconfigured, that writes to the program's stdout.
_log = logging.getLogger(__name__)

# Defaults for batching logs: the maximal number in one message, and the maximal delay before it is sent.
BATCH_LOGS = 200
LINGER = timedelta(milliseconds=200)
# How long one attempt waits for the brokers, and with it ``flush`` and ``close``: below a cluster's grace of 30 s.
DELIVERY = timedelta(seconds=20)
# Bound of the events that are not yet acknowledged, and how long an event waits for room there.
BUFFER_BYTES = 64 * 1024 * 1024
BLOCK = timedelta(seconds=1)

E = TypeVar("E", bound=Event)


class FoldtuneClient:
    """Publishes events and reads statuses and models. Thread-safe; connects on first use.

    ``log``, ``document`` and ``feedback`` take an event into a buffer and return at once. It is sent in the background,
    and sent again until the brokers acknowledge it: what is missing after an outage arrives when they are back, perhaps
    twice, which the worker's state does not notice. While the buffer is full they wait for room for ``block``, then
    raise ``BufferFullError``; in an event loop, set that to zero.

    Publishing raises ``OutOfBoundsError`` before anything is sent, ``ClientClosedError`` after ``close``, and
    ``PublishError``, which names ten ids and the count, if the brokers have refused an earlier event (it is logged as
    lost, and the new one is not taken). What waits for an acknowledgement raises ``PublishError`` without one within
    ``delivery``, and ``NoBrokerError`` if no broker has ever answered.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        batch_logs: int = BATCH_LOGS,
        linger: timedelta = LINGER,
        delivery: timedelta = DELIVERY,
        buffer_bytes: int = BUFFER_BYTES,
        block: timedelta = BLOCK,
    ) -> None:
        self._settings = settings
        self._open = partial(
            SendBuffer,
            partial(Publisher, settings.kafka, delivery.total_seconds()),
            LogBatcher(count=batch_logs, max_bytes=settings.bounds.event_bytes, linger=linger.total_seconds()),
            max_bytes=buffer_bytes,
            block=block.total_seconds(),
            delivery=delivery.total_seconds(),
        )
        self.reviews = Reviews(settings)
        self._lock = threading.Lock()
        self._opened: SendBuffer | None = None
        self._closed = False

    # ── Publishing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def log(self, log: ChatLog) -> None:
        """Take one answered question, batched with others of its folder; ``flush`` waits for it.

        It goes to the folder of each cited document, else to that of the top passage, else to its own ``folder_id``.
        """
        self._check(log, spare=ENVELOPE_BYTES)
        for folder_id in folders_of(log):
            self._buffer.add_log(log.model_copy(update={"folder_id": folder_id}))

    def document(self, document: DocumentUpserted | DocumentDeleted) -> None:
        """Take a new, changed or deleted passage; ``flush`` waits for it."""
        self._check(document)
        self._buffer.put(Message(Topic.DOCUMENTS, document.encode(), (document.document_id,), key=document.folder_id))

    def feedback(self, feedback: Feedback) -> None:
        """Take a verdict on a log; ``flush`` waits for it."""
        self._check(feedback)
        self._buffer.put(Message(Topic.FEEDBACK, feedback.encode(), (feedback.feedback_id,), key=feedback.folder_id))

    def erase(self, erasure: ErasureRequested) -> None:
        """Publish an erasure to every partition and wait for the acknowledgements."""
        self._check(erasure)
        self._buffer.publish(Message(Topic.ERASURES, erasure.encode(), (erasure.erasure_id,)))

    def flush(self) -> None:
        """Wait until every event taken before is acknowledged.

        Raises:
            PublishError: nothing was acknowledged within ``delivery``; the events are named, kept and sent again.
        """
        self._buffer.flush()

    # ── Requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def request_fine_tune(self, request: FineTuneRequested) -> None:
        """Publish a request and wait for its acknowledgement; ``wait`` and ``statuses`` report its progress."""
        if is_reserved(request.request_id):
            raise OutOfBoundsError(RESERVED)
        self._check_size(request)
        self._buffer.publish(
            Message(Topic.FINE_TUNE_REQUESTS, request.encode(), (request.request_id,), key=request.model)
        )

    def cancel(self, request_id: str, model: str, *, requested_by: str = "unknown") -> None:
        """Publish a cancellation and wait for its acknowledgement."""
        event = FineTuneCancelled(request_id=request_id, model=model, requested_at=now(), requested_by=requested_by)
        self._buffer.publish(Message(Topic.FINE_TUNE_REQUESTS, event.encode(), (request_id,), key=model))

    # ── Reviews ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def review(self, review: ModelReviewed) -> None:
        """Publish an approval or a rejection, which is final, and wait for its acknowledgement."""
        key = review_key(review.model, review.version, approved=review.approved)
        content = review.encode()
        self._buffer.publish(Message(Topic.REVIEWS, content, (key,), key=key))

    # ── Automatic retraining ─────────────────────────────────────────────────────────────────────────────────────────

    def set_policy(self, policy: RetrainingPolicy) -> None:
        """Publish a model's policy, which replaces the one before as a whole, and wait for its acknowledgement."""
        if (size := len(policy.encode())) > MAX_POLICY_BYTES:
            raise OutOfBoundsError(f"policy: {size} bytes, at most {MAX_POLICY_BYTES}")
        self._buffer.publish(Message(Topic.POLICIES, policy.encode(), (policy.model,), key=policy.model))

    def policies(self) -> dict[str, RetrainingPolicy]:
        """The policy of every model that has one, by model."""
        newest: dict[str, RetrainingPolicy] = {}
        for record in read(self._settings.kafka, Topic.POLICIES):
            if policy := _decode(record, RetrainingPolicy):
                newest[policy.model] = policy
        return newest

    def policy_decisions(self, model: str) -> list[PolicyDecided]:
        """Each change of what the policy decided on a model, from the first; the last has the newest figures."""
        changes: list[PolicyDecided] = []
        newest: PolicyDecided | None = None
        for record in read(self._settings.kafka, Topic.POLICY_DECISIONS):
            key = (record.key or b"").decode(errors="replace")
            if key.split("/")[0] == model and (decided := _decode(record, PolicyDecided)):
                if key == model:
                    newest = decided
                elif decided not in changes:
                    changes.append(decided)
        # After a crash a change is published again.
        if newest and (not changes or newest.at > changes[-1].at):
            changes = [*(changes[:-1] if changes and changes[-1].since == newest.since else changes), newest]
        return changes

    # ── Queries ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def statuses(
        self,
        request_id: str,
        *,
        model: str | None = None,
        follow: bool = True,
        timeout: timedelta | None = None,
    ) -> Generator[FineTuneStatus]:
        """The statuses of a request, oldest first; compaction may have removed all past ones but the newest.

        A request is its model and id; without ``model``, those of every model under this id, up to the first end.
        Ends with the final state or after ``timeout``; without ``follow``, at the current end of the topic.
        """
        # A status is published under two keys, and again after a crash.
        last: dict[str, FineTuneStatus] = {}
        deadline = time.monotonic() + timeout.total_seconds() if timeout else None
        for record in read(self._settings.kafka, Topic.FINE_TUNE_STATUS, follow=follow, deadline=deadline):
            # Before the record is decoded; the key was the id alone, until 0.1.
            if request_id.encode() not in (record.key or b"").split(b"/"):
                continue
            if (status := _decode(record, FineTuneStatus)) is None or status.request_id != request_id:
                continue
            known = last.get(status.model)
            # A worker that was cut off may repeat earlier states after the end.
            if model not in {None, status.model} or status == known or (known and known.state.terminal):
                continue
            last[status.model] = status
            yield status
            if follow and status.state.terminal:
                return

    def wait(self, request_id: str, timeout: timedelta, *, model: str | None = None) -> FineTuneStatus:
        """The final status of a request; ``model`` is needed where several models use the id.

        Raises:
            StatusTimeoutError: no final state within ``timeout``; the last state is named.
        """
        last = None
        for last in self.statuses(request_id, model=model, timeout=timeout):
            if last.state.terminal:
                return last
        raise StatusTimeoutError(request_id, timeout.total_seconds(), last.state if last else "unknown")

    def requests(self) -> dict[tuple[str, str], FineTuneStatus]:
        """The newest status of every request, by model and id."""
        newest: dict[str, tuple[StatusRecord, ...]] = {}
        for record in read(self._settings.kafka, Topic.FINE_TUNE_STATUS):
            if status := _decode(record, FineTuneStatus):
                new = StatusRecord(partition=record.partition, offset=record.offset, status=status)
                newest[status.request_id] = merge_status(newest.get(status.request_id, ()), new)
        statuses = (record.status for records in newest.values() for record in records)
        return {(status.model, status.request_id): status for status in statuses}

    def models(self) -> dict[str, ModelReady]:
        """The ``model_ready`` event of the newest version of every model."""
        newest: dict[str, ModelReady] = {}
        for ready in self.announcements():
            # Not the last: a late or repeated announcement of an older version is none of a newer one.
            if ready.model not in newest or ready.version >= newest[ready.model].version:
                newest[ready.model] = ready
        return newest

    def announcements(self) -> Generator[ModelReady]:
        """All ``model_ready`` events so far."""
        for record in read(self._settings.kafka, Topic.MODEL_READY):
            if ready := _decode(record, ModelReady):
                yield ready

    @overload
    def subscribe(self, group: str | None = None) -> Generator[ModelReady]: ...

    @overload
    def subscribe(self, *, idle: Literal[True]) -> Generator[ModelReady | None]: ...

    def subscribe(self, group: str | None = None, *, idle: bool = False) -> Generator[ModelReady | None]:
        """``model_ready`` events, endlessly: from the first, or with ``group`` from the group's committed offset.

        One of a model in ``approval.models`` comes once its version is approved, perhaps after later ones; one whose
        version was rejected does not come. With ``idle`` (and no group) there is a ``None`` whenever there are no more
        for a moment.

        At least once: an event is committed when the next is requested, so a crashed subscriber receives its last one
        again, and those after one that waits. The generator's ``close`` leaves the group at once.
        """
        waiting = Waiting(self.reviews)
        if group is None:
            for record in read(self._settings.kafka, Topic.MODEL_READY, follow=True, idle=True):
                if ready := _decode(record, ModelReady):
                    waiting.add(ready)
                self.reviews.refresh()
                yield from waiting.released()
                if idle and record is None:
                    yield None
            return
        with consumer(self._settings.kafka, Topic.MODEL_READY, group=group) as client:
            while True:
                polled = client.poll(timeout_ms=POLL_MILLISECONDS, max_records=1)
                records = [record for of_partition in polled.values() for record in of_partition]
                # What another member of the group has now, comes to that one.
                waiting.keep(client.assignment())
                for record in records:
                    if ready := _decode(record, ModelReady):
                        waiting.add(ready, (TopicPartition(record.topic, record.partition), record.offset))
                self.reviews.refresh()
                released = list(waiting.released())
                yield from released
                if records or released:
                    positions = {partition: client.position(partition) for partition in client.assignment()}
                    offsets = waiting.uncommitted(positions)
                    client.commit({tp: OffsetAndMetadata(offset, "", -1) for tp, offset in offsets.items()})

    # ── Lifecycle ────────────────────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Wait for what was taken, at most ``delivery``, and disconnect.

        Raises:
            PublishError: events were not acknowledged, and are lost; it names them.
        """
        self.reviews.close()
        with self._lock:
            self._closed = True
            buffer = self._opened
        if buffer:
            buffer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _buffer(self) -> SendBuffer:
        with self._lock:
            if self._closed:
                raise ClientClosedError
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _check(
        self, event: ChatLog | DocumentUpserted | DocumentDeleted | Feedback | ErasureRequested, spare: int = 0
    ) -> None:
        if reasons := list(violations(event, Rules(now(), self._settings.bounds))):
            raise OutOfBoundsError("; ".join(reasons))
        self._check_size(event, spare)

    def _check_size(self, event: Event, spare: int = 0) -> None:
        size, bound = len(event.encode()), self._settings.bounds.event_bytes - spare
        if size > bound:
            raise OutOfBoundsError(f"event: {size} bytes, at most {bound}")


def folders_of(log: ChatLog) -> tuple[str, ...]:
    """The distinct folders of a log: those of the cited documents, else that of the top passage, else its own."""
    cited = set(map(nfc, log.cited_document_ids))
    passages = sorted(log.retrieved, key=lambda passage: passage.rank)
    folders = [passage.folder_id for passage in passages if nfc(passage.document_id) in cited]
    if not folders:
        folders = [passage.folder_id for passage in passages[:1]] or [log.folder_id]
    return tuple(dict.fromkeys(folders))


def _decode(record: object, kind: type[E]) -> E | None:
    value: bytes | None = getattr(record, "value", None)
    if value is None:
        return None
    try:
        return kind.model_validate_json(value)
    except ValidationError as error:
        _log.warning(
            "invalid event skipped: type=%s topic=%s partition=%s offset=%s error=%s",
            kind.__name__,
            *(getattr(record, name, None) for name in ("topic", "partition", "offset")),
            "; ".join(explain(error)),
        )
        return None
