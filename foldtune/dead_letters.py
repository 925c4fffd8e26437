"""Dead letters: the unchanged bytes of a rejected message, with its errors and its origin as headers."""

from typing import Any

import structlog
from pydantic import ValidationError

from foldtune.kafka import Publisher
from foldtune.reasons import reasons_of
from foldtune.topics import MAX_RECORD_BYTES, Topic

_log = structlog.get_logger(__name__)

ERROR_HEADER = "foldtune-error"
TOPIC_HEADER = "foldtune-topic"
PARTITION_HEADER = "foldtune-partition"
OFFSET_HEADER = "foldtune-offset"

# An error may quote a large event, and must not push the dead letter over the broker's limit.
MAX_ERROR_BYTES = 4 * 1024
# The remainder of the limit is for key and headers.
_MAX_VALUE_BYTES = MAX_RECORD_BYTES - 64 * 1024


def dead_letter_headers(error: str, topic: str, partition: int, offset: int) -> list[tuple[str, bytes]]:
    """Errors and origin of a dead letter, as headers in UTF-8."""
    return [
        (ERROR_HEADER, error.encode()[:MAX_ERROR_BYTES].decode(errors="ignore").encode()),
        (TOPIC_HEADER, topic.encode()),
        (PARTITION_HEADER, str(partition).encode()),
        (OFFSET_HEADER, str(offset).encode()),
    ]


def truncate_value(value: bytes | None, error: str) -> tuple[bytes | None, str]:
    """The value within the brokers' limit, and the error, which says if the value was truncated."""
    if value is None or len(value) <= _MAX_VALUE_BYTES:
        return value, error
    # A consumed record may exceed what can be published: brokers apply their limit to the compressed size.
    return value[:_MAX_VALUE_BYTES], f"{error}; truncated from {len(value)} bytes to {_MAX_VALUE_BYTES}"


def reject_record(publisher: Publisher, record: Any, error: ValidationError) -> None:
    """Send a record that does not validate to the dead letters; durable on return.

    ``record`` is kafka-python's ``ConsumerRecord``, or has the same ``topic``, ``partition``, ``offset``, ``key`` and
    ``value``.

    Raises:
        PublishError: the brokers did not acknowledge it.
    """
    reasons = "; ".join(reasons_of(error))
    value, header = truncate_value(record.value, reasons)
    origin = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    publisher.send_raw(Topic.DEAD_LETTERS, value, key=record.key, headers=dead_letter_headers(header, **origin))
    publisher.flush()
    _log.warning("record sent to dead letters", **origin, error=reasons)
