"""Reads topics beside the worker's own consumption, over a connection of its own.

On the worker's connection a question would stand in line behind a fetch that waits for new events: seconds.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from foldtune.kafka import client_options
from foldtune.settings import KafkaSettings
from foldtune.topics import DATA_TOPICS, Topic


class BrokerReader:
    """Asks the brokers; connects when first asked. Errors are aiokafka's ``KafkaError``."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaConsumer | None = None
        self._one_at_a_time = asyncio.Lock()

    async def ends(self, partition: int) -> dict[Topic, int]:
        """The next offset of each data topic that holds anything at all."""
        async with self._one_at_a_time:
            client = await self._connected()
            prefix = self._settings.topic_prefix
            places = {topic: TopicPartition(topic.named(prefix), partition) for topic in DATA_TOPICS}
            first = await client.beginning_offsets(list(places.values()))
            ends = await client.end_offsets(list(places.values()))
            return {topic: ends[place] for topic, place in places.items() if ends[place] > first[place]}

    async def records(self, topic: str, partition: int, first: int, last: int) -> AsyncIterator[Any]:
        """The records of a partition from offset ``first`` to ``last``, without those that compaction has taken."""
        async with self._one_at_a_time:
            client = await self._connected()
            place = TopicPartition(topic, partition)
            client.assign([place])
            try:
                client.seek(place, first)
                while await client.position(place) <= last:
                    for record in (await client.getmany(place, timeout_ms=500)).get(place, ()):
                        if record.offset <= last:
                            yield record
            finally:
                client.unsubscribe()

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await self._client.stop()

    async def _connected(self) -> AIOKafkaConsumer:
        if self._client is None:
            # What is not committed yet is beyond the end.
            client = AIOKafkaConsumer(
                **client_options(self._settings), isolation_level="read_committed", auto_offset_reset="none"
            )
            await client.start()
            self._client = client
        return self._client
