"""Decodes messages of the data topics into valid records, or into the reasons why they are rejected."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from pydantic import Field, TypeAdapter, ValidationError

from foldtune import events
from foldtune.bounds import Bounds, Rules, is_blank, violations, written_at
from foldtune.events import SCHEMA_VERSION
from foldtune.kafka import partition_of
from foldtune.reasons import Rejected, kind_of, reasons_of
from foldtune.topics import Topic
from streams.training_sets import state_events
from streams.training_sets.state_events import Feedback, StateEvent, StateRecord, WireEvent

DecodeResult = StateRecord | Rejected


def decode_block(topic: Topic, messages: Sequence[Any], bounds: Bounds) -> list[DecodeResult]:
    """``decode`` for each message of a non-empty block, and several times as fast where chat logs are valid.

    A message whose timestamp is not plausible is rejected (``streams.partitions.positions`` replaces those it can).
    """
    if topic is not Topic.CHAT_LOGS:
        return [result for message in messages for result in _decode_message(topic, message, bounds)]
    # Not too far in the future by the earliest timestamp of the block, so by the message's own neither.
    earliest = written_at(min([message.timestamp for message in messages]))
    latest = earliest + bounds.future if earliest else _NEVER
    results: list[DecodeResult] = []
    for message in messages:
        value = message.value
        try:
            log = _LOG_DECODER.decode(value)
        except (*_DECODE_ERRORS, TypeError):
            log = None
        if log is not None and len(value) <= bounds.event_bytes and _is_clearly_valid(log, bounds, latest):
            results.append(StateRecord(message.offset, 0, log, len(value)))
        else:
            results += _decode_message(topic, message, bounds)
    return results


def reject_misplaced(
    results: list[DecodeResult], messages: Sequence[Any], partition: int, partitions: int
) -> list[DecodeResult]:
    """Reject each message with a record of a folder that lies in another partition; the whole message, unchanged.

    Its owner would not see what a producer with another partitioner, another key or none has sent here.
    """
    records: list[Any] = [result for result in results if isinstance(result, StateRecord)]
    homes = {folder: _home(folder, partitions) for folder in {record.event.folder_id for record in records}}
    if not any(home != partition for home in homes.values()):
        return results
    misplaced = {record.offset: home for record in records if (home := homes[record.event.folder_id]) != partition}
    reason = (
        f"folder_id: lies in partition {{}}, and the record came to partition {partition} of {partitions}: "
        "producers need the murmur2 partitioner, with folder_id as the key (kafka.partitioner)"
    )
    return [
        *(result for result in results if result.offset not in misplaced),
        *(
            Rejected(message.offset, 0, (reason.format(misplaced[message.offset]),), message.value, "misplaced")
            for message in messages
            if message.offset in misplaced
        ),
    ]


def _decode_message(topic: Topic, message: Any, bounds: Bounds) -> list[DecodeResult]:
    if (written := written_at(message.timestamp)) is None:
        return [Rejected(message.offset, 0, (_WITHOUT_TIME,), message.value or b"")]
    return decode(topic, message.offset, message.value, Rules(written, bounds))


def _is_clearly_valid(log: state_events.ChatLog, bounds: Bounds, latest: datetime) -> bool:
    """A cheap sufficient check of all bounds, true of almost all logs: a character has at most four bytes."""
    if (
        log.schema_version > SCHEMA_VERSION
        or not _EPOCH <= log.occurred_at <= latest
        or len(log.question) * 4 > bounds.question_bytes
        or is_blank(log.question)
        or len(log.retrieved) > bounds.passages_per_log
        or len(log.cited_document_ids) > bounds.passages_per_log
    ):
        return False
    for passage in log.retrieved:
        if passage.text is not None and len(passage.text) * 4 > bounds.passage_bytes:
            return False
    return True


def decode(topic: Topic, offset: int, value: bytes | None, rules: Rules) -> list[DecodeResult]:
    """The records and rejections of one message: one of them, or one for each log of a batch envelope."""
    if value is None:
        return [Rejected(offset, 0, ("value: the message has no value",), b"", "unreadable")]
    if len(value) > (limit := rules.bounds.event_bytes):
        return [Rejected(offset, 0, (f"event: {len(value)} bytes, at most {limit}",), value, "oversized")]
    fast_decode, _ = _DECODERS[topic]
    try:
        event = fast_decode(value)
    except _DECODE_ERRORS:
        return _decode_slowly(topic, offset, value, rules)
    if event.schema_version > SCHEMA_VERSION:
        return [_validate(topic, offset, 0, value, rules)]
    if reasons := tuple(violations(event, rules)):
        return [Rejected(offset, 0, reasons, value)]
    return [StateRecord(offset, 0, _stored(event), len(value))]


def _decode_slowly(topic: Topic, offset: int, value: bytes, rules: Rules) -> list[DecodeResult]:
    """A batch envelope, or what the fast decoder refuses: the contract decides, and gives the reasons."""
    if topic is not Topic.CHAT_LOGS:
        return [_validate(topic, offset, 0, value, rules)]
    try:
        batch = _BATCH_DECODER.decode(value)
    except _DECODE_ERRORS:
        return _validate_logs(offset, value, rules)
    if max(batch.schema_version, *(log.schema_version for log in batch.logs)) > SCHEMA_VERSION:
        return _validate_logs(offset, value, rules)
    return _check_logs(batch, offset, len(value), rules)


def _check_logs(batch: state_events.ChatLogBatch, offset: int, size: int, rules: Rules) -> list[DecodeResult]:
    """The logs of an envelope that the fast decoder accepts as a whole."""
    results: list[DecodeResult] = []
    size_per_log = size // len(batch.logs)
    latest = rules.written_at + rules.bounds.future
    for position, log in enumerate(batch.logs):
        reasons = () if _is_clearly_valid(log, rules.bounds, latest) else tuple(violations(log, rules))
        if log.folder_id != batch.folder_id:
            reasons = (*reasons, _FOLDER_MISMATCH)
        if reasons:
            results.append(Rejected(offset, position, reasons, state_events.encode(log)))
        else:
            results.append(StateRecord(offset, position, log, size_per_log))
    return results


def _validate_logs(offset: int, value: bytes, rules: Rules) -> list[DecodeResult]:
    """The logs of an envelope one by one, so that an invalid log does not reject its neighbours."""
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("type") != "chat_log_batch":
        return [_validate(Topic.CHAT_LOGS, offset, 0, value, rules)]
    try:
        events.Event.model_validate(content)
    except ValidationError as error:
        if kind_of(error) == "unknown_version":
            return [Rejected(offset, 0, reasons_of(error), value, "unknown_version")]
    logs = content.get("logs")
    if not isinstance(logs, list) or not logs:
        return [Rejected(offset, 0, ("logs: a list of at least 1 is needed",), value)]
    if len(logs) > events.MAX_ENVELOPE_LOGS:
        return [Rejected(offset, 0, (f"logs: {len(logs)}, at most {events.MAX_ENVELOPE_LOGS}",), value)]
    results: list[DecodeResult] = []
    for position, log in enumerate(logs):
        part = json.dumps(log, ensure_ascii=False).encode("utf-8", "surrogatepass")
        result = _validate(Topic.CHAT_LOGS, offset, position, part, rules)
        if isinstance(result, StateRecord) and state_events.folder_of(result.event) != content.get("folder_id"):
            result = Rejected(offset, position, (_FOLDER_MISMATCH,), part)
        results.append(result)
    return results


def _validate(topic: Topic, offset: int, position: int, value: bytes, rules: Rules) -> DecodeResult:
    """Decode one event by the contract."""
    fast_decode, contract = _DECODERS[topic]
    try:
        # The contract accepts spellings that the fast decoder refuses: encoded again, it reads them.
        event = fast_decode(contract.validate_json(value).encode())
    except ValidationError as error:
        return Rejected(offset, position, reasons_of(error), value, kind_of(error))
    if reasons := tuple(violations(event, rules)):
        return Rejected(offset, position, reasons, value)
    return StateRecord(offset, position, _stored(event), len(value))


def _stored(event: WireEvent) -> StateEvent:
    """What is stored of an event: of feedback that takes a verdict back, as much as an erasure would leave of it."""
    is_retraction = isinstance(event, Feedback) and event.verdict.is_retraction
    return state_events.tombstone(event) if is_retraction else event


# What the fast decoders raise; RecursionError at a nesting depth of about a thousand.
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = datetime.min.replace(tzinfo=UTC)
_WITHOUT_TIME = (
    "timestamp: neither this record nor one before it in its partition has a time from 2020 to 2099, in milliseconds "
    "(message.timestamp.type of the topic)"
)
# Of some thousand folders: computing it takes as long as decoding a log.
_home = lru_cache(maxsize=16_384)(partition_of)
_LOG_DECODER = msgspec.json.Decoder(state_events.ChatLog)
_BATCH_DECODER = msgspec.json.Decoder(state_events.ChatLogBatch)
_FOLDER_MISMATCH = "folder_id: a log in an envelope must be of the envelope's folder"
_Document = Annotated[events.DocumentUpserted | events.DocumentDeleted, Field(discriminator="type")]
# By topic: the fast decoder, and the contract, which explains.
_DECODERS: dict[Topic, tuple[Callable[[bytes], WireEvent], TypeAdapter[Any]]] = {
    Topic.CHAT_LOGS: (_LOG_DECODER.decode, TypeAdapter(events.ChatLog)),
    Topic.DOCUMENTS: (
        msgspec.json.Decoder(state_events.DocumentUpserted | state_events.DocumentDeleted).decode,
        TypeAdapter(_Document),
    ),
    Topic.FEEDBACK: (msgspec.json.Decoder(state_events.Feedback).decode, TypeAdapter(events.Feedback)),
    Topic.ERASURES: (msgspec.json.Decoder(state_events.ErasureRequested).decode, TypeAdapter(events.ErasureRequested)),
}
