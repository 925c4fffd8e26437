"""Folding: from a heap of records, some of them double, late or overruled, to a folder's training set.

A pure function of the set of records: their order, their number of copies and how they were cut into segments make no
difference to the result.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from infra.settings import SetLimits
from streams.events import ChatLog, DocumentDeleted, DocumentUpserted, ErasureRequested, Feedback, Verdict
from streams.records import DataEvent, Record, Source

# Clocks differ, but nobody judges an answer a day before it is given: older verdicts can go when older logs do.
CLOCK_SKEW = timedelta(days=1)
# Of two events about one thing the later counts, and of two at the same moment the one further on in its topic.
_Order = tuple[datetime, int, int]
E = TypeVar("E", bound=DataEvent)


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
    folder_id: str, records: Iterable[Record], erasures: Iterable[ErasureRequested], limits: SetLimits, as_of: datetime
) -> FolderSet:
    """The training set that ``records`` of one folder amount to at the moment ``as_of``."""
    logs: dict[str, tuple[_Order, ChatLog]] = {}
    verdicts: dict[str, tuple[_Order, Feedback]] = {}
    documents: dict[str, tuple[_Order, DocumentUpserted | DocumentDeleted]] = {}
    for record in records:
        match record.event:
            case ChatLog() as event:
                _keep_latest(logs, event.log_id, record.source, event)
            case Feedback() as event:
                _keep_latest(verdicts, event.log_id, record.source, event)
            case DocumentUpserted() | DocumentDeleted() as event:
                _keep_latest(documents, event.document_id, record.source, event)
            case ErasureRequested():
                continue
    erased = _Erased(erasures)
    oldest = as_of - limits.max_age
    living = sorted(
        (log for _, log in logs.values() if log.occurred_at >= oldest and not erased.covers_log(log)),
        key=lambda log: (log.occurred_at, log.log_id),
    )
    return FolderSet(
        folder_id=folder_id,
        logs=tuple(JudgedLog(log, _verdict(log, verdicts)) for log in living[-limits.max_examples :]),
        documents=tuple(
            document
            for _, (_, document) in sorted(documents.items())
            if isinstance(document, DocumentUpserted) and not erased.covers_document(document)
        ),
    )


def _keep_latest(kept: dict[str, tuple[_Order, E]], name: str, source: Source, event: E) -> None:
    order = (event.occurred_at, source.offset, source.position)
    known = kept.get(name)
    if known is None or order > known[0]:
        kept[name] = (order, event)


def _verdict(log: ChatLog, verdicts: dict[str, tuple[_Order, Feedback]]) -> Verdict | None:
    found = verdicts.get(log.log_id)
    if found is None or found[1].occurred_at < log.occurred_at - CLOCK_SKEW:
        return log.feedback
    return found[1].verdict


class _Erased:
    """Who and what was to be forgotten, and up to which moment."""

    def __init__(self, erasures: Iterable[ErasureRequested]) -> None:
        self._until: dict[tuple[str, str], datetime] = {}
        for erasure in erasures:
            name = (erasure.subject, erasure.subject_id)
            self._until[name] = max(erasure.occurred_at, self._until.get(name, erasure.occurred_at))

    def _covers(self, subject: str, subject_id: str | None, moment: datetime) -> bool:
        until = self._until.get((subject, subject_id)) if subject_id is not None else None
        return until is not None and moment <= until

    def covers_log(self, log: ChatLog) -> bool:
        return (
            self._covers("user", log.user_id, log.occurred_at)
            or self._covers("log", log.log_id, log.occurred_at)
            or self._covers("conversation", log.conversation_id, log.occurred_at)
        )

    def covers_document(self, document: DocumentUpserted) -> bool:
        return self._covers("document", document.document_id, document.occurred_at)
