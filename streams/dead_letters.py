"""What is kept of a message that cannot be used: its bytes untouched, what was wrong with it and where it came from."""

from typing import Any

from infra.kafka import Publisher
from streams.topics import Topic

ERROR_HEADER = "foldtune-error"
TOPIC_HEADER = "foldtune-topic"
PARTITION_HEADER = "foldtune-partition"
OFFSET_HEADER = "foldtune-offset"

# An error that quotes a large event must not make the dead letter larger than the broker takes.
MAX_ERROR_BYTES = 4 * 1024


def dead_letter_headers(error: str, topic: str, partition: int, offset: int) -> list[tuple[str, bytes]]:
    """The headers that lead from a dead letter back to its origin; all are UTF-8 text."""
    return [
        (ERROR_HEADER, error.encode()[:MAX_ERROR_BYTES].decode(errors="ignore").encode()),
        (TOPIC_HEADER, topic.encode()),
        (PARTITION_HEADER, str(partition).encode()),
        (OFFSET_HEADER, str(offset).encode()),
    ]


def send_dead_letter(publisher: Publisher, record: Any, error: str) -> None:
    """Hand a kafka-python ``ConsumerRecord`` over to the dead letters; ``publisher.flush()`` waits for it."""
    headers = dead_letter_headers(error, record.topic, record.partition, record.offset)
    publisher.send_raw(Topic.DEAD_LETTERS, record.value, key=record.key, headers=headers)
