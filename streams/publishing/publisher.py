"""How a worker publishes: everything is acknowledged by the brokers when a call returns."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import faust
from msgspec import Struct

from foldtune.dead_letters import dead_letter_headers, truncate_value
from foldtune.events import Event
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic


@dataclass(frozen=True)
class OutgoingEvent:
    """An event to publish; one without a key is broadcast to every partition of its topic."""

    topic: Topic
    event: Event
    key: str | None = None


class OutgoingRecord(Struct, frozen=True):
    """An encoded event for one partition of a topic (``None``: for each); serializable, so a table can store it."""

    # The topic's label, without the prefix of the settings.
    topic: str
    partition: int | None
    key: str | None
    value: str


def outgoing_records(events: tuple[OutgoingEvent, ...], partition: int) -> Iterator[OutgoingRecord]:
    """The records of events, in order: those with a key go to ``partition``, the others are broadcast."""
    for outgoing in events:
        target = None if outgoing.key is None else partition
        yield OutgoingRecord(outgoing.topic.label, target, outgoing.key, outgoing.event.encode().decode())


class EventPublisher(Protocol):
    """What the parts of a worker publish through."""

    async def publish(self, events: tuple[OutgoingEvent, ...], partition: int) -> None:
        """Publish in order: events with a key to ``partition``, the others to every partition."""

    async def send(self, records: tuple[OutgoingRecord, ...]) -> None:
        """Publish in order."""

    async def send_to_dead_letters(
        self, value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int]
    ) -> None:
        """Publish a record to the dead letters; ``origin`` is its topic (with prefix), partition and offset."""


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

    async def publish(self, events: tuple[OutgoingEvent, ...], partition: int) -> None:
        await self.send(tuple(outgoing_records(events, partition)))

    async def send(self, records: tuple[OutgoingRecord, ...]) -> None:
        # Handed to the producer in order, which Kafka keeps within a partition; acknowledgements are awaited together.
        acknowledgements = [
            await self._topics[record.topic].send(
                key=record.key.encode() if record.key else None, value=record.value.encode(), partition=partition
            )
            for record in records
            for partition in (range(self._partitions) if record.partition is None else (record.partition,))
        ]
        await asyncio.gather(*acknowledgements)

    async def send_to_dead_letters(
        self, value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int]
    ) -> None:
        topic = self._topics[Topic.DEAD_LETTERS.label]
        value, error = truncate_value(value, error)
        await (await topic.send(key=key, value=value, headers=dead_letter_headers(error, *origin)))
