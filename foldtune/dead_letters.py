"""Dead letters: the unchanged bytes of a rejected message, with its errors and its origin as headers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from foldtune.errors import RecordRefusedError
from foldtune.kafka import Publisher
from foldtune.reasons import explain, kind_of
from foldtune.topics import MAX_RECORD_BYTES, Topic

_log = structlog.get_logger(__name__)

ERROR_HEADER = "foldtune-error"
TOPIC_HEADER = "foldtune-topic"
PARTITION_HEADER = "foldtune-partition"
OFFSET_HEADER = "foldtune-offset"
# On a replayed record, and on the receipt of the replay: the id of the dead letter.
LETTER_HEADER = "foldtune-letter"
# On a dead letter whose record was a replay: the id of the earlier one.
REPLAY_OF_HEADER = "foldtune-replay-of"

# An error may quote a large event, and must not push the dead letter over the broker's limit.
MAX_ERROR_BYTES = 4 * 1024
# The longest key of a valid event is a folder id: 256 characters of up to 4 bytes.
_MAX_KEY_BYTES = 1024
# The remainder of the limit is for key and headers.
_MAX_VALUE_BYTES = MAX_RECORD_BYTES - 64 * 1024


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """What is written to ``dead-letters``."""

    key: bytes | None
    value: bytes | None
    error: str
    # Topic with prefix, partition and offset of the rejected record.
    origin: tuple[str, int, int]
    replay_of: bytes | None = None

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Errors and origin, in UTF-8."""
        replay_of = [] if self.replay_of is None else [(REPLAY_OF_HEADER, self.replay_of)]
        return dead_letter_headers(self.error, *self.origin) + replay_of

    def without_value(self) -> "DeadLetterRecord":
        """For a topic that takes no record of this size."""
        # First, so that it is not cut off.
        error = f"value of {len(self.value or b'')} bytes left out, too large for this topic; {self.error}"
        return replace(self, value=none_or_empty(self.key), error=error)


def replayed_letter(headers: Iterable[tuple[str, bytes | None]]) -> bytes | None:
    """The id of the dead letter that a record says it is a replay of; anybody can write headers."""
    found = dict(headers).get(LETTER_HEADER) or b""
    return found if re.fullmatch(rb"[0-9]{1,10}:[0-9]{1,19}", found) else None


def dead_letter(
    value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int], replay_of: bytes | None = None
) -> DeadLetterRecord:
    """A dead letter within the brokers' limit; its error says what was truncated.

    A consumed record may exceed what can be published: brokers apply their limit to the compressed size.
    """
    if key is not None and len(key) > _MAX_KEY_BYTES:
        error = f"key truncated from {len(key)} bytes to {_MAX_KEY_BYTES}; {error}"
        key = key[:_MAX_KEY_BYTES]
    if value is None:
        value = none_or_empty(key)
    elif len(value) > _MAX_VALUE_BYTES:
        error = f"value truncated from {len(value)} bytes to {_MAX_VALUE_BYTES}; {error}"
        value = value[:_MAX_VALUE_BYTES]
    return DeadLetterRecord(key, value, error, origin, replay_of)


def none_or_empty(key: bytes | None) -> bytes | None:
    """For a record without a value; the clients refuse one that has no key either."""
    return b"" if key is None else None


def dead_letter_headers(error: str, topic: str, partition: int, offset: int) -> list[tuple[str, bytes]]:
    """Errors and origin of a dead letter, as headers in UTF-8."""
    return [
        (ERROR_HEADER, error.encode(errors="replace")[:MAX_ERROR_BYTES].decode(errors="ignore").encode()),
        (TOPIC_HEADER, topic.encode()),
        (PARTITION_HEADER, str(partition).encode()),
        (OFFSET_HEADER, str(offset).encode()),
    ]


def reject_record(publisher: Publisher, record: Any, error: Exception) -> None:
    """Send a record that does not validate, or that cannot be handled, to the dead letters; durable on return.

    ``record`` is kafka-python's ``ConsumerRecord``, or has the same ``topic``, ``partition``, ``offset``, ``key`` and
    ``value``.

    Raises:
        PublishError: the brokers did not acknowledge it.
    """
    reasons = "; ".join(explain(error))
    letter = dead_letter(record.value, record.key, reasons, (record.topic, record.partition, record.offset))
    source = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    try:
        _publish(publisher, letter)
    except RecordRefusedError:
        try:
            _publish(publisher, letter.without_value())
        except RecordRefusedError as refused:
            # Or whoever consumes the record would meet it for ever.
            _log.error("dead letter lost", **source, error=reasons, refusal=str(refused))
            return
    _log.warning("record sent to dead letters", **source, error=reasons, exc_info=kind_of(error) == "failed" and error)


def _publish(publisher: Publisher, letter: DeadLetterRecord) -> None:
    publisher.send_raw(Topic.DEAD_LETTERS, letter.value, key=letter.key, headers=letter.headers)
    publisher.flush()
