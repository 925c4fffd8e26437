"""Folding: from a heap of records, some of them double, late or overruled, to a folder's training set.

A pure function of the set of records: their order, their number of copies and how they were cut into segments make no
difference to the result. Nor does it make one whether, before others came, those not ``needed`` were thrown away.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from infra.settings import SetLimits
from streams.erasures import Erasures
from streams.records import Record
from streams.stored import (
    ChatLog,
    DocumentUpserted,
    ErasedFeedback,
    ErasedLog,
    ErasureRequested,
    Feedback,
    Stored,
    Verdict,
)
from streams.topics import Topic

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
    latest = {topic: latest_of(needed(found, bound_of(topic, limits, as_of))) for topic, found in by_topic.items()}
    verdicts = latest.get(Topic.FEEDBACK, {})
    logs = [log for log in latest.get(Topic.CHAT_LOGS, {}).values() if isinstance(log, ChatLog)]
    documents = [one for _, one in sorted(latest.get(Topic.DOCUMENTS, {}).items()) if isinstance(one, DocumentUpserted)]
    return FolderSet(
        folder_id=folder_id,
        logs=tuple(_judged(log, verdicts.get(log.log_id)) for log in reversed(logs)),
        documents=tuple(documents),
    )


def needed(records: Iterable[Record], bound: Bound) -> Iterator[Record]:
    """Of the records of one folder and topic those that can count within a bound, whatever else comes; newest first.

    A thing counts with the size of its largest version among those that are as new. So the place at which a bound is
    reached moves only forward in time, and depends on nothing that is older: what is older is free to go. Of the
    versions of a thing, besides the latest, those stay that are larger than every newer one, where sizes count.
    """
    sizes: dict[str, int] = {}
    total, sized = 0, bound.size < float("inf")
    for record in sorted(records, key=_order, reverse=True):
        name = _name(record.event)
        size, known = record.size if sized else 0, sizes.get(name, -1)
        if size <= known:
            continue
        sizes[name] = size
        total += size - max(known, 0)
        past = bound.oldest is not None and record.event.occurred_at < bound.oldest
        if past or len(sizes) > bound.things or total > bound.size:
            return
        yield record


def latest_of(newest_first: Iterable[Record]) -> dict[str, Stored]:
    """The latest event about each thing, by what it is about."""
    latest: dict[str, Stored] = {}
    for record in newest_first:
        latest.setdefault(_name(record.event), record.event)
    return latest


def _judged(log: ChatLog, feedback: Stored | None) -> JudgedLog:
    if not isinstance(feedback, Feedback) or feedback.occurred_at < log.occurred_at - CLOCK_SKEW:
        return JudgedLog(log, log.feedback)
    return JudgedLog(log, feedback.verdict)


def _topic(event: Stored) -> Topic:
    match event:
        case ChatLog() | ErasedLog():
            return Topic.CHAT_LOGS
        case Feedback() | ErasedFeedback():
            return Topic.FEEDBACK
        case ErasureRequested():
            return Topic.ERASURES
        case _:
            return Topic.DOCUMENTS


def _name(event: Stored) -> str:
    match event:
        case ChatLog() | ErasedLog() | Feedback() | ErasedFeedback():
            return event.log_id
        case ErasureRequested():
            return f"{event.subject} {event.subject_id}"
        case _:
            return event.document_id


def _order(record: Record) -> tuple[datetime, str, int, int]:
    # Of two events about one thing the later counts, and of two at the same moment the one further on in its topic.
    return record.event.occurred_at, _name(record.event), record.offset, record.position
