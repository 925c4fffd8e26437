"""How a worker publishes: everything is acknowledged by the brokers when a call returns."""

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import faust
import structlog
from msgspec import Struct

from foldtune.dead_letters import dead_letter
from foldtune.errors import RecordRefusedError
from foldtune.events import Event
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic
from streams.metrics import LOST_DEAD_LETTERS, REFUSED_RECORDS
from streams.partitions.producing import acknowledged, check_size, enqueue

_log = structlog.get_logger()


_LIMITS = {topic.label: topic.max_record_bytes for topic in Topic}
# In a dead letter of a record that foldtune could not write: it has no place in its topic, so it is not replayed.
_NO_OFFSET = -1


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

    async def publish(self, events: tuple[OutgoingEvent, ...], partition: int) -> tuple[OutgoingRecord, ...]:
        """Publish in order: events with a key to ``partition``, the others to every partition; returns as ``send``."""
        return await self.send(tuple(outgoing_records(events, partition)))

    async def send(self, records: tuple[OutgoingRecord, ...]) -> tuple[OutgoingRecord, ...]:
        """Publish in order; returns those that cannot be written, which are in the dead letters instead."""

    async def send_to_dead_letters(
        self,
        value: bytes | None,
        key: bytes | None,
        error: str,
        origin: tuple[str, int, int],
        replay_of: bytes | None = None,
    ) -> None:
        """Publish a record to the dead letters; ``origin`` is its topic (with prefix), partition and offset.

        ``replay_of`` is the dead letter that it was replayed from.

        Calls at a time are published in their order.
        """


class FaustEventPublisher(EventPublisher):
    """Publishes through Faust's producer."""

    def __init__(self, app: faust.App, settings: KafkaSettings) -> None:
        self._partitions = settings.partitions
        # Those acknowledged: a block of invalid records proceeds by them.
        self.dead_letters = 0
        self._letters_in_order = asyncio.Lock()
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

    async def send(self, records: tuple[OutgoingRecord, ...]) -> tuple[OutgoingRecord, ...]:
        # Handed to the producer in order, which Kafka keeps within a partition; acknowledgements are awaited together.
        pending: list[tuple[OutgoingRecord, Awaitable[object]]] = []
        refused: dict[OutgoingRecord, RecordRefusedError] = {}
        for record in records:
            for partition in range(self._partitions) if record.partition is None else (record.partition,):
                try:
                    pending.append((record, await self._enqueue(record, partition)))
                except RecordRefusedError as error:
                    refused[record] = error
        for record, future in pending:
            try:
                await acknowledged(self._topics[record.topic], future)
            except RecordRefusedError as error:
                refused[record] = error
        for record, refusal in refused.items():
            await self._report_refused(record, refusal)
        return tuple(refused)

    async def _enqueue(self, record: OutgoingRecord, partition: int) -> Awaitable[object]:
        # An empty key is one, too.
        key, value = None if record.key is None else record.key.encode(), record.value.encode()
        check_size(record.topic, _LIMITS[record.topic], key, value)
        return await enqueue(self._topics[record.topic], key=key, value=value, partition=partition)

    async def _report_refused(self, record: OutgoingRecord, error: RecordRefusedError) -> None:
        REFUSED_RECORDS.labels(record.topic).inc()
        _log.error("record not written", topic=record.topic, key=record.key, error=str(error))
        origin = (self._topics[record.topic].get_topic_name(), record.partition or 0, _NO_OFFSET)
        key = None if record.key is None else record.key.encode()
        await self.send_to_dead_letters(record.value.encode(), key, str(error), origin)

    async def send_to_dead_letters(
        self,
        value: bytes | None,
        key: bytes | None,
        error: str,
        origin: tuple[str, int, int],
        replay_of: bytes | None = None,
    ) -> None:
        topic = self._topics[Topic.DEAD_LETTERS.label]
        whole = dead_letter(value, key, error, origin, replay_of)
        for letter in (whole, whole.without_value()):
            try:
                async with self._letters_in_order:
                    future = await enqueue(topic, key=letter.key, value=letter.value, headers=letter.headers)
                await acknowledged(topic, future)
            except RecordRefusedError as refused:
                reason = str(refused)
            else:
                self.dead_letters += 1
                return
        LOST_DEAD_LETTERS.inc()
        _log.error("dead letter lost", topic=origin[0], partition=origin[1], offset=origin[2], error=reason)
