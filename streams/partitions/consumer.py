"""Takes topics in: each partition in its order, from the place that is kept beside what came of it.

A place is written once all before it is durable, to the same partition of the same changelog. So whoever rebuilds the
state knows where it ends: there is no second account of what is done that could run ahead of it, as the offsets of a
consumer group can. A worker that lost its partition and does not know it may write an older place; that only repeats.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from foldtune.kafka import client_options
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic
from streams.errors import PartitionLostError
from streams.partitions.changelog_table import ChangelogTable, Changes, Table

_log = structlog.get_logger()
_POLL_SECONDS = 0.2
_RETRY_SECONDS = 0.5
# The default of 1 MiB a partition would cut a backlog into blocks of a thousand logs.
_FETCH_BYTES = 4 << 20
# While one partition is at work the others' fetch may be waiting for news at the broker, and the first waits with it.
_FETCH_WAIT_MS = 100

# Handles some records of one partition, in their order; when it returns, what follows from them is durable.
Take = Callable[[Topic, int, Sequence[Any]], Awaitable[None]]
Write = Callable[[int, Changes], Awaitable[object]]


class PartitionConsumer:
    """Reads the partitions of some topics that this worker owns, as long as it owns them."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: tuple[Topic, ...],
        table: ChangelogTable,
        *,
        write: Write,
        take: Take,
        block: int,
    ) -> None:
        """Records go to ``take`` in blocks of at most ``block``; ``write`` writes the place reached to ``table``."""
        self._kafka = kafka
        self._topics = topics
        self._table = table
        self._write = write
        self._take = take
        self._block = block
        # While a partition is followed. What the table says may fall back for a moment: see above.
        self._reached: dict[tuple[Topic, int], int] = {}
        self._stopping = False

    def reached(self, topic: Topic, partition: int) -> int:
        """The offset that is to be taken next; all before it is durable."""
        return self._reached.get((topic, partition)) or stored_offset(self._table, topic, partition)

    async def run(self) -> None:
        """Go on until ``stop``; raises what neither brokers nor ``take`` can recover from."""
        # A place that is gone from the topic, or not there yet, means that the topic was cut or made anew.
        async with (
            AIOKafkaConsumer(
                **client_options(self._kafka),
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                max_partition_fetch_bytes=_FETCH_BYTES,
                fetch_max_wait_ms=_FETCH_WAIT_MS,
            ) as consumer,
            asyncio.TaskGroup() as group,
        ):
            # Assigned once and for all: a new assignment would lose every partition's position.
            places = [place for number in range(self._kafka.partitions) for place in self._places(number)]
            consumer.assign(places)
            consumer.pause(*places)
            following: dict[int, asyncio.Task[None]] = {}
            while not self._stopping:
                for number in range(self._kafka.partitions):
                    owned_generation = self._table.owned_generation(number)
                    if owned_generation is not None and (number not in following or following[number].done()):
                        following[number] = group.create_task(self._follow(consumer, number, owned_generation))
                await asyncio.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Have ``run`` return once the blocks that are at work are done."""
        self._stopping = True

    async def _follow(self, consumer: Any, partition: int, owned_generation: int) -> None:
        places = self._places(partition)
        while self._holds(partition, owned_generation):
            for place, topic in places.items():
                self._reached.pop((topic, partition), None)
                consumer.seek(place, self.reached(topic, partition))
            consumer.resume(*places)
            try:
                await self._take_on(consumer, partition, owned_generation)
            except PartitionLostError as error:
                _log.info("not the owner", reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
        consumer.pause(*places)
        for topic in places.values():
            self._reached.pop((topic, partition), None)

    async def _take_on(self, consumer: Any, partition: int, owned_generation: int) -> None:
        places = self._places(partition)
        while self._holds(partition, owned_generation):
            fetched = await consumer.getmany(*places, timeout_ms=int(_POLL_SECONDS * 1000))
            for place, topic in places.items():
                for block in _blocks(fetched.get(place, ()), self._block):
                    if not self._holds(partition, owned_generation):
                        return
                    await self._take(topic, partition, block)
                    await self._arrive(topic, partition, block[-1].offset + 1)
                # A transaction's end is a record that nobody sees, and the end of a topic may lie behind it.
                if self.reached(topic, partition) < (position := await consumer.position(place)):
                    await self._arrive(topic, partition, position)

    async def _arrive(self, topic: Topic, partition: int, place: int) -> None:
        await self._write(partition, {offset_key(topic): b"%d" % place})
        self._reached[topic, partition] = place

    def _holds(self, partition: int, owned_generation: int) -> bool:
        return not self._stopping and self._table.owned_generation(partition) == owned_generation

    def _places(self, partition: int) -> dict[TopicPartition, Topic]:
        return {TopicPartition(topic.named(self._kafka.topic_prefix), partition): topic for topic in self._topics}


def stored_offset(table: Table, topic: Topic, partition: int) -> int:
    """The place reached in a topic, as the table has it."""
    return int(table.get(partition, offset_key(topic)) or 0)


def offset_key(topic: Topic) -> bytes:
    """Under which key a table keeps the place reached in a topic."""
    return f"o|{topic.label}".encode()


def _blocks(records: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]
