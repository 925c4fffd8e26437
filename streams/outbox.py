"""How a worker publishes: acknowledged by the brokers before the caller goes on."""

import asyncio
from typing import Any, Protocol

import faust

from infra.settings import KafkaSettings
from streams.coordination import Output
from streams.dead_letters import dead_letter_headers
from streams.events import SnapshotCommand
from streams.topics import Topic

# Topic, partition and offset of a message.
Origin = tuple[str, int, int]


class Outbox(Protocol):
    """What the parts of a worker publish through."""

    async def publish(self, outputs: tuple[Output, ...], partition: int) -> None:
        """Publish in order; ``partition`` is for what has a key, the rest goes to every partition."""

    async def dead_letter(
        self, value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int]
    ) -> None:
        """Put a message aside with what was wrong."""


class FaustOutbox(Outbox):
    """Publishes through Faust's producer."""

    def __init__(self, app: faust.App, settings: KafkaSettings) -> None:
        self._partitions = settings.partitions
        self._topics: dict[Topic, Any] = {
            topic: app.topic(
                topic.named(settings.topic_prefix),
                key_type=bytes,
                value_type=bytes,
                key_serializer="raw",
                value_serializer="raw",
            )
            for topic in Topic
        }

    async def publish(self, outputs: tuple[Output, ...], partition: int) -> None:
        for output in outputs:
            if output.key is not None:
                await self._send(output.topic, output.event.encode(), output.key.encode(), partition)
                continue
            sends = []
            for target in range(self._partitions):
                event = output.event
                if isinstance(event, SnapshotCommand):
                    event = event.model_copy(update={"partition": target})
                sends.append(self._send(output.topic, event.encode(), None, target))
            await asyncio.gather(*sends)

    async def dead_letter(
        self, value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int]
    ) -> None:
        await self._send(Topic.DEAD_LETTERS, value, key, None, dead_letter_headers(error, *origin))

    async def _send(
        self,
        topic: Topic,
        value: bytes | None,
        key: bytes | None,
        partition: int | None,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> None:
        sent = await self._topics[topic].send(key=key, value=value, partition=partition, headers=headers)
        await sent
