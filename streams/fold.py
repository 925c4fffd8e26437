"""Folding: from a heap of records, some of them double, late or overruled, to a folder's training set.

A pure function of the set of records: their order, their number of copies and how they were cut into segments make no
difference to the result.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from infra.settings import SetLimits
from streams.erasures import Erasures
from streams.records import Record
from streams.stored import ChatLog, DocumentUpserted, ErasedLog, ErasureRequested, Feedback, Stored, Verdict

# Clocks differ, but nobody judges an answer a day before it is given: older verdicts can go when older logs do.
CLOCK_SKEW = timedelta(days=1)


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


def fold(
    folder_id: str, records: Iterable[Record], erasures: Erasures, limits: SetLimits, as_of: datetime
) -> FolderSet:
    """The training set that ``records`` of one folder amount to at the moment ``as_of``."""
    latest = latest_of(records, erasures)
    verdicts = {record.event.log_id: record.event for record in latest if isinstance(record.event, Feedback)}
    logs = _newest([record for record in latest if isinstance(record.event, ChatLog | ErasedLog)], limits, as_of)
    documents = [record.event for record in latest if isinstance(record.event, DocumentUpserted)]
    return FolderSet(
        folder_id=folder_id,
        logs=tuple(_judged(log, verdicts.get(log.log_id)) for log in logs),
        documents=tuple(sorted(documents, key=lambda document: document.document_id)),
    )


def _judged(log: ChatLog, feedback: Feedback | None) -> JudgedLog:
    if feedback is None or feedback.occurred_at < log.occurred_at - CLOCK_SKEW:
        return JudgedLog(log, log.feedback)
    return JudgedLog(log, feedback.verdict)


def latest_of(records: Iterable[Record], erasures: Erasures) -> list[Record]:
    """Of all records about one thing the latest, without the words that are to be forgotten.

    Applied to a part of the records first and to the rest later it comes to the same.
    """
    latest: dict[tuple[str, str], Record] = {}
    for given in records:
        record = erasures.applied(given) if erasures else given
        if record is None:
            continue
        name = _name(record.event)
        known = latest.get(name)
        if known is None or _order(record) > _order(known):
            latest[name] = record
    return list(latest.values())


def _name(event: Stored) -> tuple[str, str]:
    match event:
        case ChatLog() | ErasedLog():
            return "log", event.log_id
        case Feedback():
            return "verdict", event.log_id
        case ErasureRequested():
            return f"erased {event.subject}", event.subject_id
        case _:
            return "document", event.document_id


def _order(record: Record) -> tuple[datetime, int, int]:
    # Of two events about one thing the later counts, and of two at the same moment the one further on in its topic.
    return record.event.occurred_at, record.offset, record.position


def _newest(logs: list[Record], limits: SetLimits, as_of: datetime) -> list[ChatLog]:
    """The newest logs that fit the limits, oldest first."""
    oldest = as_of - limits.max_age
    kept: list[ChatLog] = []
    size = 0
    for place, record in enumerate(sorted(logs, key=_age, reverse=True)):
        log = record.event
        size += record.size
        # An erased log keeps its place and its size: what it once pushed out may be gone for good.
        if log.occurred_at < oldest or place == limits.max_examples or size > limits.max_bytes:
            break
        if isinstance(log, ChatLog):
            kept.append(log)
    kept.reverse()
    return kept


def _age(record: Record) -> tuple[datetime, str]:
    return record.event.occurred_at, _name(record.event)[1]
