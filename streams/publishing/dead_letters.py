"""Sends what cannot be used to the dead letters: counted, logged and acknowledged."""

from typing import Any

import structlog
from pydantic import ValidationError

from foldtune.reasons import Rejected, kind_of, reasons_of
from foldtune.topics import Topic
from streams.metrics import count_rejected
from streams.publishing.publisher import EventPublisher

_log = structlog.get_logger()


async def send_to_dead_letters(outbox: EventPublisher, topic: Topic, message: Any, rejected: Rejected) -> None:
    """Send what is no event of ``topic``, ``message`` or a part of it, to the dead letters; counted and logged."""
    error = "; ".join(rejected.reasons)
    origin = (message.topic, message.partition, message.offset)
    _log.warning("rejected", topic=message.topic, partition=message.partition, offset=message.offset, error=error)
    await outbox.dead_letter(rejected.value, message.key, error, origin)
    count_rejected(topic, rejected.kind)


def invalid_record(message: Any, error: ValidationError) -> Rejected:
    """A message that the contract refuses as a whole."""
    return Rejected(message.offset, 0, reasons_of(error), message.value, kind_of(error))
