"""Folding: from a heap of records, some of them double, late or overruled, to a folder's training set.

A pure function of the set of records: their order, their number of copies and how they were cut into segments make no
difference to the result. Nor does it make one whether, before others came, those not ``needed`` were thrown away.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from foldtune.settings import SetLimits
from foldtune.topics import Topic
from streams.training_sets.decoding import Record
from streams.training_sets.erasures import Erasures
from streams.training_sets.state_events import (
    ChatLog,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    FeedbackTombstone,
    LogTombstone,
    Stored,
    Verdict,
)

# Clocks differ, but nobody judges an answer a day before it is given: older verdicts can go when older logs do.
CLOCK_SKEW = timedelta(days=1)
# Verdicts come later than their logs, and some for logs that are out already: so many are kept for each log.
VERDICTS_PER_LOG = 2


@dataclass(frozen=True, slots=True)
class JudgedLog:
    """A log with the newest verdict on it."""

    log: ChatLog
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class FolderSet:
    """A folder's rolling training set, oldest log first, documents by id."""

    folder_id: str
    logs: tuple[JudgedLog, ...]
    documents: tuple[DocumentUpserted, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """How many things, of how many bytes in all, and since when."""

    things: float = float("inf")
    size: float = float("inf")
    oldest: datetime | None = None


def bound_of(topic: Topic, limits: SetLimits, as_of: datetime) -> Bound:
    """How far back the records of a topic reach in a folder's set at the moment ``as_of``."""
    match topic:
        case Topic.CHAT_LOGS:
            return Bound(limits.max_examples, limits.max_bytes, as_of - limits.max_age)
        case Topic.FEEDBACK:
            most = limits.max_examples * VERDICTS_PER_LOG
            return Bound(most, limits.max_bytes, as_of - limits.max_age - CLOCK_SKEW)
        case _:
            return Bound()


def fold(
    folder_id: str, records: Iterable[Record], erasures: Erasures, limits: SetLimits, as_of: datetime
) -> FolderSet:
    """The training set that ``records`` of one folder amount to at the moment ``as_of``."""
    by_topic: dict[Topic, list[Record]] = defaultdict(list)
    for record in records:
        left = erasures.applied(record) if erasures else record
        if left is not None:
            by_topic[_topic(left.event)].append(left)
    latest = {topic: needed(found, bound_of(topic, limits, as_of)).latest for topic, found in by_topic.items()}
    verdicts = latest.get(Topic.FEEDBACK, {})
    logs = [record.event for record in latest.get(Topic.CHAT_LOGS, {}).values() if isinstance(record.event, ChatLog)]
    corpus = [record.event for _, record in sorted(latest.get(Topic.DOCUMENTS, {}).items())]
    return FolderSet(
        folder_id=folder_id,
        logs=tuple(_judged(log, verdicts.get(log.log_id)) for log in reversed(logs)),
        documents=tuple(document for document in corpus if isinstance(document, DocumentUpserted)),
    )


@dataclass(frozen=True, slots=True)
class Needed:
    """What of the records of one folder and topic can count within a bound, whatever else comes."""

    # By what it is about, the newest first.
    latest: dict[str, Record]
    # Those of which only the size counts.
    sizes: list[Record]


def needed(records: Iterable[Record], bound: Bound) -> Needed:
    """Goes back in time until a bound is reached.

    A thing counts with the size of its largest version among those that are as new. So the place at which a bound is
    reached moves only forward in time, and depends on nothing that is older. What is older is free to go, but for the
    record itself that is too much: without it, smaller ones behind it would find room.
    """
    latest: dict[str, Record] = {}
    counted: dict[str, int] = {}
    sizes: list[Record] = []
    total, sized = 0, bound.size < float("inf")
    for record in sorted(records, key=_order, reverse=True):
        name = about(record.event)
        size, known = record.size if sized else 0, counted.get(name, -1)
        if size <= known:
            continue
        counted[name] = size
        total += size - max(known, 0)
        past = bound.oldest is not None and record.event.occurred_at < bound.oldest
        if past or len(counted) > bound.things:
            break
        if total > bound.size:
            sizes.append(record)
            break
        if name in latest:
            sizes.append(record)
        else:
            latest[name] = record
    return Needed(latest, sizes)


def _judged(log: ChatLog, said: Record | None) -> JudgedLog:
    feedback = said.event if said else None
    if not isinstance(feedback, Feedback) or feedback.occurred_at < log.occurred_at - CLOCK_SKEW:
        return JudgedLog(log, log.feedback)
    return JudgedLog(log, feedback.verdict)


def _topic(event: Stored) -> Topic:
    match event:
        case ChatLog() | LogTombstone():
            return Topic.CHAT_LOGS
        case Feedback() | FeedbackTombstone():
            return Topic.FEEDBACK
        case ErasureRequested():
            return Topic.ERASURES
        case _:
            return Topic.DOCUMENTS


def about(event: Stored) -> str:
    """The id of the thing that an event is about, unique among those of its topic and folder."""
    match event:
        case ChatLog() | LogTombstone() | Feedback() | FeedbackTombstone():
            return event.log_id
        case ErasureRequested():
            return f"{event.subject} {event.subject_id}"
        case _:
            return event.document_id


def _order(record: Record) -> tuple[datetime, str, int, int]:
    # Of two events about one thing the later counts, and of two at the same moment the one further on in its topic.
    return record.event.occurred_at, about(record.event), record.offset, record.position
