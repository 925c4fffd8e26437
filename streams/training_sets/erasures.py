"""Erasures: which users, logs, conversations and documents are erased, and what that leaves of an event."""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from functools import cached_property

from msgspec.structs import replace

from streams.training_sets.state_events import (
    ChatLog,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    RetrievedPassage,
    StateEvent,
    StateRecord,
    tombstone,
)


class Erasures:
    """The erasures of one partition. Each covers events that occurred up to its own time, whenever they arrive."""

    def __init__(self, events: Iterable[ErasureRequested] = ()) -> None:
        self._erased_until: dict[tuple[str, str], datetime] = {}
        for event in events:
            subject = (event.subject, event.subject_id)
            self._erased_until[subject] = max(event.occurred_at, self._erased_until.get(subject, event.occurred_at))

    def __bool__(self) -> bool:
        return bool(self._erased_until)

    @cached_property
    def fingerprint(self) -> bytes:
        """Equal for equal erasures, in whichever order and how often they were published."""
        return hashlib.sha256(repr(sorted(self._erased_until.items())).encode()).hexdigest().encode()

    def apply(self, record: StateRecord) -> StateRecord:
        """What is left of a record: the same object if nothing is erased, else perhaps a tombstone.

        Feedback holds neither text nor a user, so it is erased only with a log that is named itself.
        """
        remaining: StateEvent
        match record.event:
            case ChatLog() as log:
                remaining = tombstone(log) if self._covers_log(log) else self._without_erased_texts(log)
            case Feedback() as feedback:
                erased = self._covers("log", feedback.log_id, feedback.occurred_at)
                remaining = tombstone(feedback) if erased else feedback
            case DocumentUpserted() as document:
                erased = self._covers("document", document.document_id, document.occurred_at)
                remaining = tombstone(document) if erased else document
            case _:
                return record
        # The size stays: records that this one pushed out of the bound may have been dropped for good.
        return record if remaining is record.event else replace(record, event=remaining)

    def _covers_log(self, log: ChatLog) -> bool:
        return (
            self._covers("user", log.user_id, log.occurred_at)
            or self._covers("log", log.log_id, log.occurred_at)
            or self._covers("conversation", log.conversation_id, log.occurred_at)
        )

    def _covers(self, subject: str, subject_id: str | None, moment: datetime) -> bool:
        until = self._erased_until.get((subject, subject_id)) if subject_id is not None else None
        return until is not None and moment <= until

    def _without_erased_texts(self, log: ChatLog) -> ChatLog:
        def is_erased(passage: RetrievedPassage) -> bool:
            return passage.text is not None and self._covers("document", passage.document_id, log.occurred_at)

        if not any(is_erased(passage) for passage in log.retrieved):
            return log
        retrieved = tuple(replace(passage, text=None) if is_erased(passage) else passage for passage in log.retrieved)
        return replace(log, retrieved=retrieved)
