"""From the bytes of a data topic to checked records, or to what is wrong with them."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Struct
from pydantic import Field, TypeAdapter, ValidationError

from foldtune import events
from foldtune.bounds import Rules, violations, written_at
from foldtune.reasons import Rejected, kind_of, reasons_of
from foldtune.settings import Bounds
from foldtune.topics import Topic
from streams.training_sets import state_events
from streams.training_sets.state_events import Stored


class Record(Struct, frozen=True, array_like=True, gc=False):
    """One checked event, and where it stands in its topic: what makes it itself, whatever happens on the way."""

    offset: int
    # Its place in a batch envelope; 0 for an event of its own.
    position: int
    event: Stored
    # Bytes that it came in; what an erasure takes out of it later makes it no smaller.
    size: int


Outcome = Record | Rejected


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


def _is_plain(log: state_events.ChatLog, bounds: Bounds, latest: datetime) -> bool:
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


def _slowly(topic: Topic, offset: int, value: bytes, rules: Rules) -> list[Outcome]:
    """An envelope, or what the quick reader refuses: the contract has the last word, and the words for it."""
    if topic is not Topic.CHAT_LOGS:
        return [_explained(topic, offset, 0, value, rules)]
    try:
        batch = _BATCH.decode(value)
    except _UNREADABLE:
        return _log_by_log(offset, value, rules)
    return _logs_of(batch, offset, len(value), rules)


def _logs_of(batch: state_events.ChatLogBatch, offset: int, size: int, rules: Rules) -> list[Outcome]:
    outcomes: list[Outcome] = []
    share = size // len(batch.logs)
    latest = rules.written_at + rules.bounds.future
    for position, log in enumerate(batch.logs):
        reasons = () if _is_plain(log, rules.bounds, latest) else tuple(violations(log, rules))
        if log.folder_id != batch.folder_id:
            reasons = (*reasons, _OTHER_FOLDER)
        if reasons:
            outcomes.append(Rejected(offset, position, reasons, state_events.encode(log)))
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
        if isinstance(outcome, Record) and state_events.folder_of(outcome.event) != content.get("folder_id"):
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


# What the quick readers raise; the last where something is nested a thousand deep.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOG = msgspec.json.Decoder(state_events.ChatLog)
_BATCH = msgspec.json.Decoder(state_events.ChatLogBatch)
_OTHER_FOLDER = "folder_id: a log in an envelope must be of the envelope's folder"
_Document = Annotated[events.DocumentUpserted | events.DocumentDeleted, Field(discriminator="type")]
# For each topic the quick reader, and the contract that explains.
_READERS: dict[Topic, tuple[Callable[[bytes], Stored], TypeAdapter[Any]]] = {
    Topic.CHAT_LOGS: (_LOG.decode, TypeAdapter(events.ChatLog)),
    Topic.DOCUMENTS: (
        msgspec.json.Decoder(state_events.DocumentUpserted | state_events.DocumentDeleted).decode,
        TypeAdapter(_Document),
    ),
    Topic.FEEDBACK: (msgspec.json.Decoder(state_events.Feedback).decode, TypeAdapter(events.Feedback)),
    Topic.ERASURES: (msgspec.json.Decoder(state_events.ErasureRequested).decode, TypeAdapter(events.ErasureRequested)),
}
