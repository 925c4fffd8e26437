"""From the bytes of a data topic to checked records, or to what is wrong with them."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Struct
from pydantic import Field, TypeAdapter, ValidationError

from infra.settings import Bounds
from streams import events, stored
from streams.knobs import MODEL_NAME
from streams.stored import Stored
from streams.topics import Topic


class Record(Struct, frozen=True, array_like=True, gc=False):
    """One checked event, and where it stands in its topic: what makes it itself, whatever happens on the way."""

    offset: int
    # Its place in a batch envelope; 0 for an event of its own.
    position: int
    event: Stored
    # Bytes that it came in; what an erasure takes out of it later makes it no smaller.
    size: int


# In a word, for counting: no event at all, one over the bound of its whole size, or one that breaks a rule.
RejectedKind = Literal["unreadable", "oversized", "invalid"]


class Rejected(Struct, frozen=True):
    """One event, or one log of an envelope, that cannot be taken, and why: each reason names a field and a bound."""

    offset: int
    position: int
    reasons: tuple[str, ...]
    # The part of the message that it concerns, so that it can be mended and replayed alone.
    value: bytes
    kind: RejectedKind = "invalid"


Outcome = Record | Rejected


class Rules(NamedTuple):
    """What an event of the right form is held to.

    ``written_at`` is the time that Kafka keeps with the message: unlike the clock it is the same on every replay.
    """

    written_at: datetime
    bounds: Bounds


def decode_block(topic: Topic, messages: Sequence[Any], bounds: Bounds) -> list[Outcome]:
    """Like ``decode`` for each message of a block, which is not empty, and several times as fast on sound logs."""
    if topic is not Topic.CHAT_LOGS:
        return [outcome for message in messages for outcome in _decode_message(topic, message, bounds)]
    # A log that is no later than this is in time for the message's own time as well.
    latest = written_at(min([message.timestamp for message in messages])) + bounds.future
    outcomes: list[Outcome] = []
    for message in messages:
        value = message.value
        try:
            event = _LOG.decode(value)
        except (*_UNREADABLE, TypeError):
            event = None
        if event is not None and len(value) <= bounds.event_bytes and _is_plain(event, bounds, latest):
            outcomes.append(Record(message.offset, 0, event, len(value)))
        else:
            outcomes += _decode_message(topic, message, bounds)
    return outcomes


def _decode_message(topic: Topic, message: Any, bounds: Bounds) -> list[Outcome]:
    return decode(topic, message.offset, message.value, Rules(written_at(message.timestamp), bounds))


def _is_plain(log: stored.ChatLog, bounds: Bounds, latest: datetime) -> bool:
    """Whether a log is within all bounds at first sight: a character has at most four bytes. True of almost all."""
    if (
        not _EPOCH <= log.occurred_at <= latest
        or len(log.question) * 4 > bounds.question_bytes
        or log.question.isspace()
        or len(log.retrieved) > bounds.passages_per_log
        or len(log.cited_document_ids) > bounds.passages_per_log
    ):
        return False
    for passage in log.retrieved:
        if passage.text is not None and len(passage.text) * 4 > bounds.passage_bytes:
            return False
    return True


def decode(topic: Topic, offset: int, value: bytes | None, rules: Rules) -> list[Outcome]:
    """Every record of one message, or what is wrong with it."""
    if value is None:
        return [Rejected(offset, 0, ("value: a message without a value says nothing",), b"", "unreadable")]
    if len(value) > (limit := rules.bounds.event_bytes):
        return [Rejected(offset, 0, (f"event: {len(value)} bytes, at most {limit}",), value, "oversized")]
    quick, _ = _READERS[topic]
    try:
        event = quick(value)
    except _UNREADABLE:
        return _slowly(topic, offset, value, rules)
    if reasons := tuple(violations(event, rules)):
        return [Rejected(offset, 0, reasons, value)]
    return [Record(offset, 0, event, len(value))]


Location = tuple[int | str, ...]


def field_of(location: Location) -> str:
    """A place in an event as its path."""
    return ".".join(map(str, location)) or "event"


def reasons_of(error: ValidationError, named: Callable[[Location], str] = field_of) -> tuple[str, ...]:
    """A validation error as lines that say which field is wrong, as ``named`` names it, and what its bound is."""
    # What may be of several types is refused once for each: one reason that names all of them.
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False)[:_REASONS]:
        location = tuple(part for part in item["loc"] if not _UNION_ARM.fullmatch(str(part)))
        found.setdefault(named(location), []).append(_what_is_wrong(item))
    return tuple(
        f"{field}: {first}{''.join(f' or {other.removeprefix(_SHOULD)}' for other in others)}"
        for field, (first, *others) in found.items()
    )


def _what_is_wrong(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "no such name is known"
    if item["type"] == "string_pattern_mismatch" and (words := _PATTERNS.get(item["ctx"]["pattern"])):
        return f"{_SHOULD}{words}"
    return str(item["msg"]).removeprefix("Value error, ")


def kind_of(error: ValidationError) -> RejectedKind:
    """Whether an event could be read at all."""
    unreadable = any(item["type"] == "json_invalid" for item in error.errors(include_url=False))
    return "unreadable" if unreadable else "invalid"


def _slowly(topic: Topic, offset: int, value: bytes, rules: Rules) -> list[Outcome]:
    """An envelope, or what the quick reader refuses: the contract has the last word, and the words for it."""
    if topic is not Topic.CHAT_LOGS:
        return [_explained(topic, offset, 0, value, rules)]
    try:
        batch = _BATCH.decode(value)
    except _UNREADABLE:
        return _log_by_log(offset, value, rules)
    return _logs_of(batch, offset, len(value), rules)


def _logs_of(batch: stored.ChatLogBatch, offset: int, size: int, rules: Rules) -> list[Outcome]:
    outcomes: list[Outcome] = []
    share = size // len(batch.logs)
    latest = rules.written_at + rules.bounds.future
    for position, log in enumerate(batch.logs):
        reasons = () if _is_plain(log, rules.bounds, latest) else tuple(violations(log, rules))
        if log.folder_id != batch.folder_id:
            reasons = (*reasons, _OTHER_FOLDER)
        if reasons:
            outcomes.append(Rejected(offset, position, reasons, stored.encode(log)))
        else:
            outcomes.append(Record(offset, position, log, share))
    return outcomes


def _log_by_log(offset: int, value: bytes, rules: Rules) -> list[Outcome]:
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("type") != "chat_log_batch":
        return [_explained(Topic.CHAT_LOGS, offset, 0, value, rules)]
    logs = content.get("logs")
    if not isinstance(logs, list) or not logs:
        return [Rejected(offset, 0, ("logs: a list of at least 1 is needed",), value)]
    if len(logs) > events.MAX_ENVELOPE_LOGS:
        return [Rejected(offset, 0, (f"logs: {len(logs)}, at most {events.MAX_ENVELOPE_LOGS}",), value)]
    outcomes: list[Outcome] = []
    for position, log in enumerate(logs):
        part = json.dumps(log, ensure_ascii=False).encode("utf-8", "surrogatepass")
        outcome = _explained(Topic.CHAT_LOGS, offset, position, part, rules)
        if isinstance(outcome, Record) and stored.folder_of(outcome.event) != content.get("folder_id"):
            outcome = Rejected(offset, position, (_OTHER_FOLDER,), part)
        outcomes.append(outcome)
    return outcomes


def _explained(topic: Topic, offset: int, position: int, value: bytes, rules: Rules) -> Outcome:
    """One event by the contract itself."""
    quick, contract = _READERS[topic]
    try:
        # What the contract takes and the quick reader did not is put into the form that both read.
        event = quick(contract.validate_json(value).encode())
    except ValidationError as error:
        return Rejected(offset, position, reasons_of(error), value, kind_of(error))
    reasons = tuple(violations(event, rules))
    return Rejected(offset, position, reasons, value) if reasons else Record(offset, position, event, len(value))


def violations(event: Any, rules: Rules) -> Iterator[str]:
    """What in a well-formed event, of the wire or of the state, is over a configured bound."""
    moment = event.occurred_at
    if moment > rules.written_at + rules.bounds.future:
        yield f"occurred_at: {moment.isoformat()} lies more than {rules.bounds.future} in the future"
    if moment.year < 1970:
        yield f"occurred_at: {moment.isoformat()} lies before 1970"
    match event:
        case events.ChatLog() | stored.ChatLog():
            yield from _log_violations(event, rules.bounds)
        case events.DocumentUpserted() | stored.DocumentUpserted():
            yield from _text("text", event.text, rules.bounds.passage_bytes)
            yield from _text("title", event.title, rules.bounds.question_bytes, may_be_empty=True)


def _log_violations(log: Any, bounds: Bounds) -> Iterator[str]:
    yield from _text("question", log.question, bounds.question_bytes)
    if len(log.retrieved) > bounds.passages_per_log:
        yield f"retrieved: {len(log.retrieved)} passages, at most {bounds.passages_per_log}"
    if len(log.cited_document_ids) > bounds.passages_per_log:
        yield f"cited_document_ids: {len(log.cited_document_ids)}, at most {bounds.passages_per_log}"
    for index, passage in enumerate(log.retrieved):
        if passage.text is not None:
            yield from _text(f"retrieved.{index}.text", passage.text, bounds.passage_bytes, may_be_empty=True)


def _text(field: str, text: str, limit: int, *, may_be_empty: bool = False) -> Iterator[str]:
    size = len(text) if text.isascii() else len(text.encode())
    if size > limit:
        yield f"{field}: {size} bytes, at most {limit}"
    if not may_be_empty and text.isspace():
        yield f"{field}: only white space, at least 1 other character"


def written_at(timestamp_ms: int) -> datetime:
    """Kafka's message time as a moment; one that producers left out, or that cannot be meant, bounds nothing."""
    return datetime.fromtimestamp((timestamp_ms if 0 <= timestamp_ms < _NEVER_MS else _NEVER_MS) / 1000, UTC)


# What the quick readers raise; the last where something is nested a thousand deep.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
# An event may be wrong in many thousand places; the first ones are told.
_REASONS = 20
# How pydantic tells the arms of a union apart in an error's location.
_UNION_ARM = re.compile(r"constrained-\w+|literal\[.*\]")
_SHOULD = "Input should be "
_PATTERNS = {
    MODEL_NAME: "1 to 64 lower-case letters, digits and any of . _ -, with a letter or digit at both ends",
    events.REQUEST_ID: "1 to 128 letters, digits and any of . _ -, with a letter or digit in front",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER_MS = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp() * 1000)
_LOG = msgspec.json.Decoder(stored.ChatLog)
_BATCH = msgspec.json.Decoder(stored.ChatLogBatch)
_OTHER_FOLDER = "folder_id: a log in an envelope must be of the envelope's folder"
_Document = Annotated[events.DocumentUpserted | events.DocumentDeleted, Field(discriminator="type")]
# For each topic the quick reader, and the contract that explains.
_READERS: dict[Topic, tuple[Callable[[bytes], Stored], TypeAdapter[Any]]] = {
    Topic.CHAT_LOGS: (_LOG.decode, TypeAdapter(events.ChatLog)),
    Topic.DOCUMENTS: (
        msgspec.json.Decoder(stored.DocumentUpserted | stored.DocumentDeleted).decode,
        TypeAdapter(_Document),
    ),
    Topic.FEEDBACK: (msgspec.json.Decoder(stored.Feedback).decode, TypeAdapter(events.Feedback)),
    Topic.ERASURES: (msgspec.json.Decoder(stored.ErasureRequested).decode, TypeAdapter(events.ErasureRequested)),
}
