"""What tells a worker the time."""

from datetime import datetime

from aiokafka.structs import RecordMetadata, TopicPartition


def acknowledgement(moment: datetime, *, stamped: bool = True) -> RecordMetadata:
    """A broker's answer about a record that it, or else the producer, stamped with ``moment``."""
    timestamp = int(moment.timestamp() * 1000)
    return RecordMetadata("t", 0, TopicPartition("t", 0), 0, timestamp, int(stamped), None)
