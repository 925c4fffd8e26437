"""Sends rejected records to the dead letters: acknowledged, logged and counted."""

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

from foldtune.dead_letters import replayed_letter
from foldtune.reasons import Rejected, explain, kind_of
from foldtune.topics import Topic
from streams.metrics import count_rejected
from streams.publishing.publisher import EventPublisher

_log = structlog.get_logger()


async def send_to_dead_letters(publisher: EventPublisher, topic: Topic, message: Any, rejected: Rejected) -> None:
    """Send a record of ``topic``, or the part of it that was rejected, to the dead letters; durable on return."""
    error = "; ".join(rejected.reasons)
    origin = (message.topic, message.partition, message.offset)
    await publisher.send_to_dead_letters(rejected.value, message.key, error, origin, replayed_letter(message.headers))
    _log.warning(
        "record sent to dead letters",
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        error=error,
    )
    count_rejected(topic, rejected.kind)


async def send_all_to_dead_letters(
    publisher: EventPublisher, topic: Topic, rejected: Iterable[tuple[Any, Rejected]]
) -> None:
    """``send_to_dead_letters`` for messages and what was rejected of them, in order; awaits the brokers once."""
    calls = [send_to_dead_letters(publisher, topic, message, part) for message, part in rejected]
    # All of them are awaited: none is left to fail unseen while the block is already being repeated.
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if outcome is not None:
            raise outcome


async def reject_record(publisher: EventPublisher, topic: Topic, message: Any, error: Exception) -> None:
    """Send a record that does not validate, or that could not be handled, to the dead letters; durable on return."""
    kind = kind_of(error)
    if kind == "failed":
        source = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
        _log.error("record not handled", **source, exc_info=error)
    await send_to_dead_letters(
        publisher, topic, message, Rejected(message.offset, 0, explain(error), message.value, kind)
    )
