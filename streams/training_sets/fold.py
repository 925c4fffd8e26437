"""Folding: turns records, some of them duplicate, late or superseded, into a folder's training set.

A pure function of the set of records: their order, the number of copies and the segments they came in make no
difference. Nor does dropping, before further records arrive, those that ``retained`` leaves out.
"""

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from foldtune.settings import SetLimits
from foldtune.spellings import nfc
from foldtune.topics import Topic
from streams.training_sets.erasures import Erasures
from streams.training_sets.state_events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    FeedbackTombstone,
    LogTombstone,
    StateEvent,
    StateRecord,
    Verdict,
)

# Clocks differ, but no verdict is a day older than its log: verdicts can expire this much later than logs.
CLOCK_SKEW = timedelta(days=1)
# Some verdicts refer to logs that have expired or were not seen yet: this many are retained for each log allowed.
VERDICTS_PER_LOG = 2


@dataclass(frozen=True, slots=True)
class JudgedLog:
    """A log with the newest verdict on it."""

    log: ChatLog
    verdict: Verdict | None
    # Whether its newest feedback does not count, since it is older than the log by more than ``CLOCK_SKEW``.
    ignores_feedback: bool = False


@dataclass(frozen=True, slots=True)
class FolderSet:
    """A folder's rolling training set: logs from oldest to newest, documents sorted by id."""

    folder_id: str
    logs: tuple[JudgedLog, ...]
    documents: tuple[DocumentUpserted, ...]
    # The ids, in NFC, of documents that were deleted or erased, and not upserted after it. Others may never have been
    # published.
    deleted: frozenset[str]
    # How many logs those of other agents replaced, as far as the older versions were not dropped.
    replaced: int = field(default=0, compare=False)


class LogAuthors:
    """The agents that published each log: where they are several, each counts by itself, and only one log is left."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._others: set[tuple[str, str]] = set()

    def note(self, event: StateEvent) -> None:
        """Note the author of a version of a log."""
        if isinstance(event, ChatLog):
            log_id, agent_id = entity_id(event), sys.intern(event.agent_id)
            if self._first.setdefault(log_id, agent_id) != agent_id:
                self._others.add((log_id, agent_id))

    def replaced(self, latest: Collection[str]) -> int:
        """How many logs were replaced by those of other agents, of the ids that are left."""
        return sum(log_id in latest for log_id, _ in self._others)


@dataclass(frozen=True, slots=True)
class RetentionBound:
    """How many items, of how many bytes in all, and from what time on."""

    max_items: float = float("inf")
    max_bytes: float = float("inf")
    oldest: datetime | None = None


def retention_bound(topic: Topic, limits: SetLimits, as_of: datetime) -> RetentionBound:
    """The bound on a topic's records in a folder's training set at the time ``as_of``."""
    match topic:
        case Topic.CHAT_LOGS:
            return RetentionBound(limits.max_examples, limits.max_bytes, as_of - limits.max_age)
        case Topic.FEEDBACK:
            max_verdicts = limits.max_examples * VERDICTS_PER_LOG
            return RetentionBound(max_verdicts, limits.max_bytes, as_of - limits.max_age - CLOCK_SKEW)
        case _:
            return RetentionBound()


def fold(
    folder_id: str, records: Iterable[StateRecord], erasures: Erasures, limits: SetLimits, as_of: datetime
) -> FolderSet:
    """The training set of one folder's ``records`` at the time ``as_of``."""
    by_topic: dict[Topic, list[StateRecord]] = defaultdict(list)
    authors = LogAuthors()
    for record in records:
        remaining = erasures.apply(record) if erasures else record
        by_topic[topic_of(remaining.event)].append(remaining)
        authors.note(remaining.event)
    latest = {topic: retained(group, retention_bound(topic, limits, as_of)).latest for topic, group in by_topic.items()}
    verdicts = latest.get(Topic.FEEDBACK, {})
    logs = [record.event for record in latest.get(Topic.CHAT_LOGS, {}).values() if isinstance(record.event, ChatLog)]
    documents = [record.event for _, record in sorted(latest.get(Topic.DOCUMENTS, {}).items())]
    return FolderSet(
        folder_id=folder_id,
        logs=tuple(_judge(log, verdicts.get(nfc(log.log_id))) for log in reversed(logs)),
        documents=tuple(document for document in documents if isinstance(document, DocumentUpserted)),
        deleted=frozenset(nfc(document.document_id) for document in documents if isinstance(document, DocumentDeleted)),
        replaced=authors.replaced(latest.get(Topic.CHAT_LOGS, {})),
    )


@dataclass(frozen=True, slots=True)
class Retained:
    """The records of one folder and topic that any later fold within the bound can depend on."""

    # The newest version of each entity, by its id, newest first.
    latest: dict[str, StateRecord]
    # Records whose size counts against the bound but whose content does not matter.
    size_only: list[StateRecord]


def retained(records: Iterable[StateRecord], bound: RetentionBound) -> Retained:
    """Walk back in time until the bound is reached.

    On the way an entity counts with its largest version so far. So the point at which the bound is reached only ever
    moves forward in time, and does not depend on older records. Those can be dropped, except the record that exceeds
    the bound: without it, smaller ones before it would fit.
    """
    latest: dict[str, StateRecord] = {}
    counted_size: dict[str, int] = {}
    size_only: list[StateRecord] = []
    total, is_sized = 0, bound.max_bytes < float("inf")
    for record in sorted(records, key=_version_order, reverse=True):
        entity = entity_id(record.event)
        size, previous = record.size if is_sized else 0, counted_size.get(entity, -1)
        if size <= previous:
            continue
        counted_size[entity] = size
        total += size - max(previous, 0)
        expired = bound.oldest is not None and record.event.occurred_at < bound.oldest
        if expired or len(counted_size) > bound.max_items:
            break
        if total > bound.max_bytes:
            size_only.append(record)
            break
        if entity in latest:
            size_only.append(record)
        else:
            latest[entity] = record
    return Retained(latest, size_only)


def topic_of(event: StateEvent) -> Topic:
    """The data topic that an event belongs to."""
    match event:
        case ChatLog() | LogTombstone():
            return Topic.CHAT_LOGS
        case Feedback() | FeedbackTombstone():
            return Topic.FEEDBACK
        case ErasureRequested():
            return Topic.ERASURES
        case _:
            return Topic.DOCUMENTS


def entity_id(event: StateEvent) -> str:
    """The id of the log, document or erased subject that an event is a version of; unique in its topic and folder.

    An id that differs in its Unicode spelling only is the same. Nothing is stored under it, so old records fold alike.
    """
    match event:
        case ChatLog() | LogTombstone() | Feedback() | FeedbackTombstone():
            return nfc(event.log_id)
        case ErasureRequested():
            return nfc(f"{event.subject} {event.subject_id}")
        case _:
            return nfc(event.document_id)


def _version_order(record: StateRecord) -> tuple[datetime, str, int, int]:
    # The newer version wins by event time; at the same time, the one with the higher offset.
    return record.event.occurred_at, entity_id(record.event), record.offset, record.position


def _judge(log: ChatLog, latest: StateRecord | None) -> JudgedLog:
    feedback = latest.event if latest else None
    if isinstance(feedback, Feedback):
        is_ignored = feedback.occurred_at < log.occurred_at - CLOCK_SKEW
        return JudgedLog(log, log.feedback if is_ignored else feedback.verdict, is_ignored)
    # Taken back. An erasure of feedback leaves the same, but it covers its log too, unless that is newer.
    is_retracted = isinstance(feedback, FeedbackTombstone) and feedback.occurred_at >= log.occurred_at
    return JudgedLog(log, None if is_retracted else log.feedback)
