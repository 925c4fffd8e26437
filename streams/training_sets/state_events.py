"""The events of the data topics as the state stores them.

The wire contract (``foldtune.events``, pydantic) explains what is wrong with an invalid event; these msgspec structs
are for the many valid ones. They are decoded straight from the wire's JSON, ten times as fast, and accept nothing that
the contract rejects (a test compares the two on random input). The configured bounds are checked on both alike.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from foldtune.events import MAX_ENVELOPE_LOGS

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Time = Annotated[datetime, Meta(tz=True)]
# Of any version: what an earlier release has stored stays readable. ``decoding`` refuses those that are not known.
Version = Annotated[int, Meta(ge=1)]


class RetrievedPassage(Struct, omit_defaults=True, gc=False):
    """See ``foldtune.events.RetrievedPassage``."""

    document_id: Id
    folder_id: Id
    rank: Annotated[int, Meta(ge=1)]
    score: float | None = None
    text: str | None = None


class Verdict(Struct, omit_defaults=True, gc=False):
    """See ``foldtune.events.Verdict``."""

    rating: Literal["like", "dislike"] | UnsetType | None = UNSET
    correct_document_id: Id | None = None
    correct_folder_id: Id | None = None

    def __post_init__(self) -> None:
        if self.correct_document_id is not None:
            # Only where it is all that a verdict says does a null differ from nothing.
            self.rating = self.rating or UNSET
        elif self.rating is UNSET:
            msg = "one of rating and correct_document_id is needed"
            raise ValueError(msg)
        if self.correct_folder_id is not None and self.correct_document_id is None:
            msg = "correct_folder_id needs correct_document_id"
            raise ValueError(msg)

    @property
    def is_retraction(self) -> bool:
        """Whether it takes the verdict back. Such a one is not stored: earlier releases could not read it."""
        return self.rating is None


class ChatLog(Struct, omit_defaults=True, gc=False, tag_field="type", tag="chat_log"):
    """See ``foldtune.events.ChatLog``; the answer is decoded but not stored."""

    log_id: Id
    occurred_at: Time
    agent_id: Id
    question: Annotated[str, Meta(min_length=1)]
    folder_id: Id
    schema_version: Version = 1
    conversation_id: Id | None = None
    user_id: Id | None = None
    answer: str | None = None
    retrieved: tuple[RetrievedPassage, ...] = ()
    cited_document_ids: tuple[Id, ...] = ()
    feedback: Verdict | None = None

    def __post_init__(self) -> None:
        if self.feedback is not None and self.feedback.is_retraction:
            self.feedback = None


class LogTombstone(Struct, omit_defaults=True, gc=False, tag_field="type", tag="erased_log"):
    """Replaces an erased log. It still counts as the log's newest version, so that no older one resurfaces."""

    log_id: Id
    occurred_at: Time
    folder_id: Id


class ChatLogBatch(Struct, gc=False, tag_field="type", tag="chat_log_batch"):
    """See ``foldtune.events.ChatLogBatch``."""

    folder_id: Id
    logs: Annotated[tuple[ChatLog, ...], Meta(min_length=1, max_length=MAX_ENVELOPE_LOGS)]
    schema_version: Version = 1


class Feedback(Struct, omit_defaults=True, gc=False, tag_field="type", tag="feedback"):
    """See ``foldtune.events.Feedback``."""

    feedback_id: Id
    occurred_at: Time
    log_id: Id
    folder_id: Id
    verdict: Verdict
    schema_version: Version = 1


class FeedbackTombstone(Struct, omit_defaults=True, gc=False, tag_field="type", tag="erased_feedback"):
    """Replaces erased feedback, see ``LogTombstone``, and stands for a verdict that was taken back."""

    log_id: Id
    occurred_at: Time
    folder_id: Id


class DocumentUpserted(Struct, omit_defaults=True, gc=False, tag_field="type", tag="document_upserted"):
    """See ``foldtune.events.DocumentUpserted``."""

    document_id: Id
    folder_id: Id
    occurred_at: Time
    text: Annotated[str, Meta(min_length=1)]
    title: str = ""
    schema_version: Version = 1


class DocumentDeleted(Struct, omit_defaults=True, gc=False, tag_field="type", tag="document_deleted"):
    """See ``foldtune.events.DocumentDeleted``."""

    document_id: Id
    folder_id: Id
    occurred_at: Time
    schema_version: Version = 1


class ErasureRequested(Struct, omit_defaults=True, gc=False, tag_field="type", tag="erasure_requested"):
    """See ``foldtune.events.ErasureRequested``."""

    erasure_id: Id
    occurred_at: Time
    subject: Literal["user", "log", "conversation", "document", "folder", "agent"]
    subject_id: Id
    folder_id: Id | None = None
    schema_version: Version = 1


# Those that are received, and what erasures leave of them.
WireEvent = ChatLog | Feedback | DocumentUpserted | DocumentDeleted | ErasureRequested
StateEvent = WireEvent | LogTombstone | FeedbackTombstone
# Version 0.1 stored erasures as segments, under an id that no folder has, since a folder's is never empty.
NO_FOLDER = ""

encode = msgspec.json.Encoder().encode


class StateRecord(Struct, frozen=True, array_like=True, gc=False):
    """One valid event with its position in its topic, by which copies are recognized as the same record."""

    offset: int
    # Index in a batch envelope; 0 for a message of one event.
    position: int
    event: StateEvent
    # Bytes in the message; erasing parts of the event does not change it.
    size: int


def folder_of(event: StateEvent) -> str:
    """The id of the folder that an event belongs to."""
    return NO_FOLDER if isinstance(event, ErasureRequested) else event.folder_id


def is_labelled(event: StateEvent) -> bool:
    """Whether an event labels a log by itself: one with a citation or a verdict, or feedback that names a document.

    A rating is about what is cited, which has labelled the log before.
    """
    if isinstance(event, Feedback):
        return event.verdict.correct_document_id is not None
    return isinstance(event, ChatLog) and bool(event.cited_document_ids or event.feedback)


def tombstone(event: StateEvent) -> StateEvent:
    """The event without its content: its entity and time only, which is all that ``fold.retained`` needs."""
    match event:
        case ChatLog():
            return LogTombstone(event.log_id, event.occurred_at, event.folder_id)
        case Feedback():
            return FeedbackTombstone(event.log_id, event.occurred_at, event.folder_id)
        case DocumentUpserted():
            return DocumentDeleted(event.document_id, event.folder_id, event.occurred_at)
        case _:
            return event
