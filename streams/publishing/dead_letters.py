"""Sends rejected records to the dead letters: acknowledged, logged and counted."""

from typing import Any

import structlog
from pydantic import ValidationError

from foldtune.reasons import Rejected, kind_of, reasons_of
from foldtune.topics import Topic
from streams.metrics import count_rejected
from streams.publishing.publisher import EventPublisher

_log = structlog.get_logger()


async def send_to_dead_letters(publisher: EventPublisher, topic: Topic, message: Any, rejected: Rejected) -> None:
    """Send a record of ``topic``, or the part of it that was rejected, to the dead letters; durable on return."""
    error = "; ".join(rejected.reasons)
    origin = (message.topic, message.partition, message.offset)
    await publisher.send_to_dead_letters(rejected.value, message.key, error, origin)
    _log.warning(
        "record sent to dead letters",
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        error=error,
    )
    count_rejected(topic, rejected.kind)


def invalid_record(message: Any, error: ValidationError) -> Rejected:
    """The rejection of a whole record that does not validate."""
    return Rejected(message.offset, 0, reasons_of(error), message.value, kind_of(error))
