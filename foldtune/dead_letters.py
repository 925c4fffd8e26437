"""What is kept of a message that cannot be used: its bytes untouched, what was wrong with it and where it came from."""

from typing import Any

from foldtune.kafka import MAX_REQUEST_BYTES, Publisher
from foldtune.topics import Topic

ERROR_HEADER = "foldtune-error"
TOPIC_HEADER = "foldtune-topic"
PARTITION_HEADER = "foldtune-partition"
OFFSET_HEADER = "foldtune-offset"

# An error that quotes a large event must not make the dead letter larger than the broker takes.
MAX_ERROR_BYTES = 4 * 1024
# The rest of what a message may have is for its key and for what is wrong with it.
_LETTER_BYTES = MAX_REQUEST_BYTES - 64 * 1024


def dead_letter_headers(error: str, topic: str, partition: int, offset: int) -> list[tuple[str, bytes]]:
    """The headers that lead from a dead letter back to its origin; all are UTF-8 text."""
    return [
        (ERROR_HEADER, error.encode()[:MAX_ERROR_BYTES].decode(errors="ignore").encode()),
        (TOPIC_HEADER, topic.encode()),
        (PARTITION_HEADER, str(partition).encode()),
        (OFFSET_HEADER, str(offset).encode()),
    ]


def bounded_letter(value: bytes | None, error: str) -> tuple[bytes | None, str]:
    """As much of a value as the brokers take, and the error, which says so where that is not all."""
    if value is None or len(value) <= _LETTER_BYTES:
        return value, error
    # A record may be larger than what is written of it: the brokers bound it as it is compressed.
    return value[:_LETTER_BYTES], f"{error}; of {len(value)} bytes the first {_LETTER_BYTES} are kept here"


def send_dead_letter(publisher: Publisher, record: Any, error: str) -> None:
    """Hand a record over to the dead letters; ``publisher.flush()`` waits for it.

    ``record`` is kafka-python's ``ConsumerRecord``, or what has ``topic``, ``partition``, ``offset``, ``key`` and
    ``value`` like it.
    """
    value, error = bounded_letter(record.value, error)
    headers = dead_letter_headers(error, record.topic, record.partition, record.offset)
    publisher.send_raw(Topic.DEAD_LETTERS, value, key=record.key, headers=headers)
