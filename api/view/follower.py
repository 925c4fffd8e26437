"""Reads topics from their beginning, and then whatever is added to them."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError
from prometheus_client import Counter

from foldtune.compression import bound_decompression
from foldtune.errors import NoBrokerError, TopicMissingError
from foldtune.kafka import BOOTSTRAP_SECONDS, consumer
from foldtune.reasons import explain
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic
from streams.partitions.connection import aiokafka_options

bound_decompression(fetcher)

UNREADABLE = Counter("foldtune_api_unreadable_records", "Records that the API's view leaves out.", ["topic"])

_POLL_MS = 250
# Other calls are answered between two blocks.
_BLOCK_RECORDS = 500
# How often the brokers are asked where the topics end.
_CHECK_SECONDS = 1.0
_RETRY_SECONDS = 1.0

_log = structlog.get_logger(__name__)

Apply = Callable[[Any], object]


def partitions_of(settings: KafkaSettings, topics: tuple[Topic, ...]) -> dict[Topic, int]:
    """The number of partitions of each topic.

    Raises:
        NoBrokerError: no broker answers.
        TopicMissingError: no worker has created it yet, or this user may not see it.
    """
    with consumer(settings) as client:
        counts = {topic: len(client.partitions_for_topic(topic.named(settings.topic_prefix)) or ()) for topic in topics}
    for topic, count in counts.items():
        if not count:
            raise TopicMissingError(topic.named(settings.topic_prefix))
    return counts


class TopicFollower:
    """Calls ``apply`` with every record of some topics, in order within each partition, on the event loop's thread.

    ``tail`` is the number of records per partition with which it begins; without one, with the first.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        partitions: Mapping[Topic, int],
        apply: Apply,
        tail: int | None = None,
        forget: Apply | None = None,
    ) -> None:
        """``forget`` takes the records without a value, which are left out otherwise."""
        self._settings = settings
        self._apply = apply
        self._forget = forget
        self._tail = tail
        self._topics = {topic.named(settings.topic_prefix): topic for topic in partitions}
        self._partitions = [
            TopicPartition(topic.named(settings.topic_prefix), number)
            for topic, count in partitions.items()
            for number in range(count)
        ]
        self._created_at = time.monotonic()
        self._current_at: float | None = None
        self._consumer: AIOKafkaConsumer | None = None

    @property
    def topics(self) -> str:
        """The names of the topics, without the prefix of this system."""
        return ", ".join(topic.label for topic in self._topics.values())

    @property
    def age_seconds(self) -> float | None:
        """How long ago everything that the topics had was applied; ``None`` before that was so for the first time."""
        return None if self._current_at is None else time.monotonic() - self._current_at

    @property
    def lag_seconds(self) -> float:
        """The same; before the first time for how long it has been read."""
        return time.monotonic() - (self._created_at if self._current_at is None else self._current_at)

    async def catch_up(self) -> None:
        """Connect, and read what there is; raises ``NoBrokerError``."""
        client = AIOKafkaConsumer(
            **aiokafka_options(self._settings), enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            async with asyncio.timeout(BOOTSTRAP_SECONDS):
                await client.start()
                client.assign(self._partitions)
                await self._seek(client)
        except (KafkaError, TimeoutError) as error:
            await client.stop()
            raise NoBrokerError(self._settings.bootstrap_servers) from error
        self._consumer = client
        while self._current_at is None:
            await self._step(client)

    async def run(self) -> None:
        """Follow the topics until this is cancelled; brokers that are away are waited for."""
        while True:
            try:
                if self._consumer is None:
                    await self.catch_up()
                else:
                    await self._step(self._consumer)
            except (KafkaError, NoBrokerError) as error:
                topics = ", ".join(self._topics)
                _log.warning("topics not read, will retry", topics=topics, error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(_RETRY_SECONDS)

    async def close(self) -> None:
        """Disconnect."""
        if self._consumer:
            await self._consumer.stop()

    async def _seek(self, client: AIOKafkaConsumer) -> None:
        if self._tail is None:
            await client.seek_to_beginning(*self._partitions)
            return
        first, ends = await client.beginning_offsets(self._partitions), await client.end_offsets(self._partitions)
        for partition in self._partitions:
            client.seek(partition, max(first[partition], ends[partition] - self._tail))

    async def _step(self, client: AIOKafkaConsumer) -> None:
        """Apply records for about a second, then see whether these were all."""
        asked_at = time.monotonic()
        ends = await client.end_offsets(self._partitions)
        while time.monotonic() - asked_at < _CHECK_SECONDS:
            for records in (await client.getmany(timeout_ms=_POLL_MS, max_records=_BLOCK_RECORDS)).values():
                for record in records:
                    self._apply_one(record)
            await asyncio.sleep(0)
            if self._current_at is None and await self._has_reached(client, ends):
                break
        if await self._has_reached(client, ends):
            self._current_at = asked_at

    async def _has_reached(self, client: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> bool:
        for partition, end in ends.items():
            if await client.position(partition) < end:
                return False
        return True

    def _apply_one(self, record: Any) -> None:
        apply = self._apply if record.value is not None else self._forget
        if apply is None:
            return
        try:
            apply(record)
        except Exception as error:
            # Defects included: one record must not end the view of all others. Its text may be of users.
            topic = self._topics[record.topic]
            UNREADABLE.labels(topic.label).inc()
            source = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            is_defect = not isinstance(error, ValueError)
            _log.warning("unreadable record left out", **source, error="; ".join(explain(error)), exc_info=is_defect)


async def read_record(settings: KafkaSettings, topic: Topic, partition: int, offset: int) -> Any | None:
    """One record; ``None`` where there is none (any more). Raises aiokafka's ``KafkaError``."""
    client = AIOKafkaConsumer(**aiokafka_options(settings), enable_auto_commit=False, auto_offset_reset="none")
    place = TopicPartition(topic.named(settings.topic_prefix), partition)
    try:
        async with asyncio.timeout(BOOTSTRAP_SECONDS):
            await client.start()
            client.assign([place])
            first, end = (await client.beginning_offsets([place]))[place], (await client.end_offsets([place]))[place]
            if not first <= offset < end:
                return None
            client.seek(place, offset)
            record = await client.getone(place)
            return record if record.offset == offset else None
    finally:
        await client.stop()
