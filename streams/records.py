"""From the bytes of a data topic to checked records, or to what is wrong with them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from infra.settings import Bounds
from streams.events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
)
from streams.topics import Topic

# A log may come alone or in an envelope, the other events only alone.
DataEvent = ChatLog | Feedback | DocumentUpserted | DocumentDeleted | ErasureRequested


# An erasure concerns every folder: it is kept under a name that no folder has, since a folder's is never empty.
NO_FOLDER = ""
_LOG: TypeAdapter[DataEvent] = TypeAdapter(ChatLog)
_FEEDBACK: TypeAdapter[DataEvent] = TypeAdapter(Feedback)
_ERASURE: TypeAdapter[DataEvent] = TypeAdapter(ErasureRequested)
_DOCUMENT: TypeAdapter[DataEvent] = TypeAdapter(
    Annotated[DocumentUpserted | DocumentDeleted, Field(discriminator="type")]
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record stands in the input: what makes it itself, whatever happens to it on the way."""

    topic: Topic
    offset: int
    # Its place in a batch envelope; 0 for an event of its own.
    position: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One checked event with its source."""

    source: Source
    event: DataEvent


@dataclass(frozen=True, slots=True)
class Rejected:
    """One event, or one log of an envelope, that cannot be taken, and why: each reason names a field and a bound."""

    source: Source
    reasons: tuple[str, ...]
    # The part of the message that it concerns, so that it can be mended and replayed alone.
    value: bytes


def decode(
    topic: Topic, offset: int, value: bytes | None, written_at: datetime, bounds: Bounds
) -> Iterator[Record | Rejected]:
    """Every record of one message.

    ``written_at`` is the time that Kafka keeps with the message: unlike the clock it is the same on every replay.
    """
    source = Source(topic, offset)
    if value is None:
        yield Rejected(source, ("value: a message without a value says nothing",), b"")
    elif len(value) > bounds.event_bytes:
        yield Rejected(source, (f"event: {len(value)} bytes, at most {bounds.event_bytes}",), value)
    else:
        yield from _READERS[topic](source, value, written_at, bounds)


def reasons_of(error: ValidationError) -> tuple[str, ...]:
    """A validation error as lines that name the field, the bound and (shortened) the value."""
    return tuple(
        f"{'.'.join(str(part) for part in item['loc']) or 'event'}: {item['msg']}"
        for item in error.errors(include_url=False)
    )


def _read_logs(source: Source, value: bytes, written_at: datetime, bounds: Bounds) -> Iterator[Record | Rejected]:
    checked = _checked(source, value, _LOG, written_at, bounds)
    if isinstance(checked, Record) or not (logs := _envelope(value)):
        yield checked
        return
    folder, parts = logs
    if not parts:
        yield Rejected(source, ("logs: at least 1 is needed",), value)
    for position, part in enumerate(parts):
        at = Source(source.topic, source.offset, position)
        one = _checked(at, part, _LOG, written_at, bounds)
        if isinstance(one, Record) and folder_of(one.event) != folder:
            one = Rejected(at, ("folder_id: a log in an envelope must be of the envelope's folder",), part)
        yield one


def _envelope(value: bytes) -> tuple[object, list[bytes]] | None:
    """The folder and the logs of a batch envelope, each log as its own bytes: a bad one must not spoil the others."""
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("type") != "chat_log_batch":
        return None
    logs = content.get("logs")
    if not isinstance(logs, list):
        return None
    parts = [json.dumps(log, ensure_ascii=False).encode("utf-8", "surrogatepass") for log in logs]
    return content.get("folder_id"), parts


def _read_documents(source: Source, value: bytes, written_at: datetime, bounds: Bounds) -> Iterator[Record | Rejected]:
    yield _checked(source, value, _DOCUMENT, written_at, bounds)


def _read_one(kind: TypeAdapter[DataEvent]) -> Callable[[Source, bytes, datetime, Bounds], Iterator[Record | Rejected]]:
    def read(source: Source, value: bytes, written_at: datetime, bounds: Bounds) -> Iterator[Record | Rejected]:
        yield _checked(source, value, kind, written_at, bounds)

    return read


def _checked(
    source: Source, value: bytes, kind: TypeAdapter[DataEvent], written_at: datetime, bounds: Bounds
) -> Record | Rejected:
    try:
        event = kind.validate_json(value)
    except ValidationError as error:
        return Rejected(source, reasons_of(error), value)
    reasons = tuple(violations(event, written_at, bounds))
    return Rejected(source, reasons, value) if reasons else Record(source, event)


def violations(event: DataEvent, written_at: datetime, bounds: Bounds) -> Iterator[str]:
    """What in a well-formed event is over a configured bound; shared by the worker and the SDK."""
    if event.occurred_at > written_at + bounds.future:
        yield f"occurred_at: {event.occurred_at.isoformat()} lies more than {bounds.future} in the future"
    if event.occurred_at.year < 1970:
        yield f"occurred_at: {event.occurred_at.isoformat()} lies before 1970"
    match event:
        case ChatLog():
            yield from _text("question", event.question, bounds.question_bytes)
            if len(event.retrieved) > bounds.passages_per_log:
                yield f"retrieved: {len(event.retrieved)} passages, at most {bounds.passages_per_log}"
            if len(event.cited_document_ids) > bounds.passages_per_log:
                yield f"cited_document_ids: {len(event.cited_document_ids)}, at most {bounds.passages_per_log}"
            for index, passage in enumerate(event.retrieved):
                if passage.text is not None:
                    yield from _text(f"retrieved.{index}.text", passage.text, bounds.passage_bytes, may_be_empty=True)
        case DocumentUpserted():
            yield from _text("text", event.text, bounds.passage_bytes)
            yield from _text("title", event.title, bounds.question_bytes, may_be_empty=True)
        case _:
            return


def _text(field: str, text: str, limit: int, *, may_be_empty: bool = False) -> Iterator[str]:
    size = len(text.encode())
    if size > limit:
        yield f"{field}: {size} bytes, at most {limit}"
    if not may_be_empty and not text.strip():
        yield f"{field}: only white space, at least 1 other character"


def folder_of(event: DataEvent) -> str:
    """The folder that an event belongs to."""
    return NO_FOLDER if isinstance(event, ErasureRequested) else event.folder_id


def written_at(timestamp_ms: int) -> datetime:
    """Kafka's message time as a moment."""
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC)


_READERS = {
    Topic.CHAT_LOGS: _read_logs,
    Topic.DOCUMENTS: _read_documents,
    Topic.FEEDBACK: _read_one(_FEEDBACK),
    Topic.ERASURES: _read_one(_ERASURE),
}
