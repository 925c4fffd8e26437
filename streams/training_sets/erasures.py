"""Forgetting: who and what was to be erased, and what that leaves of an event."""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from functools import cached_property

from msgspec.structs import replace

from streams.training_sets.decoding import Record
from streams.training_sets.state_events import (
    ChatLog,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    RetrievedPassage,
    Stored,
    tombstone,
)


class Erasures:
    """Erasures of one partition. Each covers what occurred up to its own moment, whenever it arrives."""

    def __init__(self, events: Iterable[ErasureRequested] = ()) -> None:
        self._until: dict[tuple[str, str], datetime] = {}
        for event in events:
            name = (event.subject, event.subject_id)
            self._until[name] = max(event.occurred_at, self._until.get(name, event.occurred_at))

    def __bool__(self) -> bool:
        return bool(self._until)

    @cached_property
    def fingerprint(self) -> bytes:
        """The same for the same erasures, however they were kept."""
        return hashlib.sha256(repr(sorted(self._until.items())).encode()).hexdigest().encode()

    def applied(self, record: Record) -> Record | None:
        """The record itself, the record without the words that are to go, or nothing.

        A verdict carries no words and no user, so it goes only with a log that is named itself.
        """
        match record.event:
            case ChatLog() as log:
                return self._applied_to_log(record, log)
            case Feedback() as feedback:
                gone = self._covers("log", feedback.log_id, feedback.occurred_at)
                return _with(record, tombstone(feedback)) if gone else record
            case DocumentUpserted() as document:
                return None if self._covers("document", document.document_id, document.occurred_at) else record
            case _:
                return record

    def _applied_to_log(self, record: Record, log: ChatLog) -> Record:
        left = tombstone(log) if self._covers_log(log) else self._without_erased_texts(log)
        return record if left is log else _with(record, left)

    def _covers_log(self, log: ChatLog) -> bool:
        return (
            self._covers("user", log.user_id, log.occurred_at)
            or self._covers("log", log.log_id, log.occurred_at)
            or self._covers("conversation", log.conversation_id, log.occurred_at)
        )

    def _covers(self, subject: str, subject_id: str | None, moment: datetime) -> bool:
        until = self._until.get((subject, subject_id)) if subject_id is not None else None
        return until is not None and moment <= until

    def _without_erased_texts(self, log: ChatLog) -> ChatLog:
        def goes(passage: RetrievedPassage) -> bool:
            return passage.text is not None and self._covers("document", passage.document_id, log.occurred_at)

        if not any(goes(passage) for passage in log.retrieved):
            return log
        kept = tuple(replace(passage, text=None) if goes(passage) else passage for passage in log.retrieved)
        return replace(log, retrieved=kept)


def _with(record: Record, left: Stored) -> Record:
    # It keeps its size: what it once pushed out of the bounds may be gone for good.
    return Record(record.offset, record.position, left, record.size)
