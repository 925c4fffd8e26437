"""How a worker publishes: acknowledged by the brokers before the caller goes on."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import faust
import structlog
from msgspec import Struct

from foldtune.dead_letters import dead_letter_headers, truncate_value
from foldtune.events import Event
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic

_log = structlog.get_logger()


@dataclass(frozen=True)
class Output:
    """An event to publish. Without a key it goes to every partition of its topic."""

    topic: Topic
    event: Event
    key: str | None = None


class Message(Struct, frozen=True):
    """What goes to one partition of a topic (to each without one), by the topic's label; can be kept in a table."""

    topic: str
    partition: int | None
    key: str | None
    value: str


def messages(outputs: tuple[Output, ...], partition: int) -> Iterator[Message]:
    """Outputs as messages, in order: what has a key goes to ``partition``, the rest to every partition."""
    for output in outputs:
        target = None if output.key is None else partition
        yield Message(output.topic.label, target, output.key, output.event.encode().decode())


class EventPublisher(Protocol):
    """What the parts of a worker publish through."""

    async def publish(self, outputs: tuple[Output, ...], partition: int) -> None:
        """Publish in order; ``partition`` is for what has a key, the rest goes to every partition."""

    async def send(self, messages: tuple[Message, ...]) -> None:
        """Publish in order."""

    async def dead_letter(
        self, value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int]
    ) -> None:
        """Put a message aside with what was wrong."""


class FaustEventPublisher(EventPublisher):
    """Publishes through Faust's producer."""

    def __init__(self, app: faust.App, settings: KafkaSettings) -> None:
        self._partitions = settings.partitions
        self._topics: dict[str, Any] = {
            topic.label: app.topic(
                topic.named(settings.topic_prefix),
                key_type=bytes,
                value_type=bytes,
                key_serializer="raw",
                value_serializer="raw",
            )
            for topic in Topic
        }

    async def publish(self, outputs: tuple[Output, ...], partition: int) -> None:
        await self.send(tuple(messages(outputs, partition)))

    async def send(self, messages: tuple[Message, ...]) -> None:
        # Handed over in order, which Kafka keeps within a partition; waited for together.
        sent = [
            await self._topics[one.topic].send(
                key=one.key.encode() if one.key else None, value=one.value.encode(), partition=partition
            )
            for one in messages
            for partition in (range(self._partitions) if one.partition is None else (one.partition,))
        ]
        await asyncio.gather(*sent)

    async def dead_letter(
        self, value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int]
    ) -> None:
        topic = self._topics[Topic.DEAD_LETTERS.label]
        value, error = truncate_value(value, error)
        await (await topic.send(key=key, value=value, headers=dead_letter_headers(error, *origin)))
