"""What is kept of the events of the data topics: the form of the state.

The wire contract (``foldtune.events``) explains what is wrong with an event; these structures are for the many that are
right. They are read straight from the wire's JSON, ten times as fast, and accept nothing that the contract rejects
(a test compares the two on random input). The configured bounds are checked on both alike.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from foldtune.events import MAX_ENVELOPE_LOGS

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Time = Annotated[datetime, Meta(tz=True)]
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

    rating: Literal["like", "dislike"] | None = None
    correct_document_id: Id | None = None

    def __post_init__(self) -> None:
        if self.rating is None and self.correct_document_id is None:
            msg = "one of rating and correct_document_id is needed"
            raise ValueError(msg)


class ChatLog(Struct, omit_defaults=True, gc=False, tag_field="type", tag="chat_log"):
    """See ``foldtune.events.ChatLog``; the answer is read, and not kept."""

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


class LogTombstone(Struct, omit_defaults=True, gc=False, tag_field="type", tag="erased_log"):
    """Where a log was that is to be forgotten. It keeps its place, so that no older log comes back for it."""

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
    """Where feedback was that is to be forgotten; see ``LogTombstone``."""

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
    subject: Literal["user", "log", "conversation", "document"]
    subject_id: Id
    schema_version: Version = 1


Stored = ChatLog | LogTombstone | Feedback | FeedbackTombstone | DocumentUpserted | DocumentDeleted | ErasureRequested
# An erasure concerns every folder: it is kept under a name that no folder has, since a folder's is never empty.
NO_FOLDER = ""

encode = msgspec.json.Encoder().encode


def folder_of(event: Stored) -> str:
    """The folder that an event belongs to."""
    return NO_FOLDER if isinstance(event, ErasureRequested) else event.folder_id


def is_labelled(event: Stored) -> bool:
    """Whether an event is a log that says which passage was right, or wrong."""
    return isinstance(event, ChatLog) and bool(event.cited_document_ids or event.feedback)


def tombstone(event: Stored) -> Stored:
    """What the event is about and when it occurred, and no more: enough to tell which of many are needed."""
    match event:
        case ChatLog():
            return LogTombstone(event.log_id, event.occurred_at, event.folder_id)
        case Feedback():
            return FeedbackTombstone(event.log_id, event.occurred_at, event.folder_id)
        case DocumentUpserted():
            return DocumentDeleted(event.document_id, event.folder_id, event.occurred_at)
        case _:
            return event
