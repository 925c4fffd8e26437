"""Reads end offsets and records beside the worker's own consumption, over a connection of its own.

On a consumer's connection a request would queue behind a fetch that waits for new records: seconds.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from foldtune.bounds import epoch_ms
from foldtune.settings import KafkaSettings
from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.connection import aiokafka_options

# A fetch may wait for new records at the broker, and the next request on its connection queues behind it: the fetch of
# another partition that has records, the recovery's requests for offsets, or the next read.
FETCH_WAIT_MS = 100


class BrokerReader:
    """One request at a time; connects with the first. Errors are aiokafka's ``KafkaError``."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    async def end_offsets(self, partition: int, topics: Sequence[Topic] = DATA_TOPICS) -> dict[Topic, int]:
        """The end offset of each of the topics that is not empty."""
        async with self._lock:
            consumer = await self._connect()
            prefix = self._settings.topic_prefix
            partitions = {topic: TopicPartition(topic.named(prefix), partition) for topic in topics}
            beginnings = await consumer.beginning_offsets(list(partitions.values()))
            ends = await consumer.end_offsets(list(partitions.values()))
            return {topic: ends[tp] for topic, tp in partitions.items() if ends[tp] > beginnings[tp]}

    async def whole(self, topic: str, partition: int, first: int = 0) -> AsyncIterator[Any]:
        """The records of a partition from its beginning, or from ``first`` if that is later, to its present end."""
        async with self._lock:
            consumer, tp = await self._connect(), TopicPartition(topic, partition)
            end = (await consumer.end_offsets([tp]))[tp]
            first = max((await consumer.beginning_offsets([tp]))[tp], first) if first < end else first
        if first < end:
            async for record in self.records(topic, partition, first, end - 1):
                yield record

    async def since(self, topic: str, partition: int, moment: datetime) -> AsyncIterator[Any]:
        """The records of a partition that were written at ``moment`` or later, to its present end."""
        async with self._lock:
            consumer, tp = await self._connect(), TopicPartition(topic, partition)
            found = (await consumer.offsets_for_times({tp: epoch_ms(moment)}))[tp]
            end = (await consumer.end_offsets([tp]))[tp]
        if found and found.offset < end:
            async for record in self.records(topic, partition, found.offset, end - 1):
                yield record

    async def records(self, topic: str, partition: int, first: int, last: int) -> AsyncIterator[Any]:
        """The records of a partition from offset ``first`` to ``last``; those that were compacted away are missing."""
        async with self._lock:
            consumer = await self._connect()
            tp = TopicPartition(topic, partition)
            consumer.assign([tp])
            try:
                consumer.seek(tp, first)
                while await consumer.position(tp) <= last:
                    for record in (await consumer.getmany(tp, timeout_ms=500)).get(tp, ()):
                        if record.offset <= last:
                            yield record
            finally:
                consumer.unsubscribe()

    async def close(self) -> None:
        """Disconnect; the next request connects again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def _connect(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            # An end offset leaves out what a transaction has not committed yet.
            consumer = AIOKafkaConsumer(
                **aiokafka_options(self._settings),
                isolation_level="read_committed",
                auto_offset_reset="none",
                fetch_max_wait_ms=FETCH_WAIT_MS,
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self._consumer
