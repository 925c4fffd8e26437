"""Whether the brokers respond, and how far behind its topics the worker is."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog
from aiokafka.errors import KafkaError

from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.broker_reader import BrokerReader
from streams.worker.watchdog import Answers

_log = structlog.get_logger()
_INTERVAL_SECONDS = 10.0
_TIMEOUT_SECONDS = 5.0
# More than one interval and one timeout: a single request that times out does not make the worker unready.
_UNRESPONSIVE_SECONDS = 20.0


class BrokerMonitor:
    """Polls the brokers for the end offsets of the consumed topics, over a connection of its own."""

    def __init__(
        self,
        reader: BrokerReader,
        owned_partitions: Callable[[], list[int]],
        next_offset: Callable[[Topic, int], int],
        topics: Sequence[Topic] = DATA_TOPICS,
    ) -> None:
        self._reader = reader
        self._owned_partitions = owned_partitions
        self._next_offset = next_offset
        self._topics = topics
        self._answers = Answers(time.monotonic(), time.monotonic())
        self._failed = False
        # Records published and not yet consumed, as last measured.
        self.lag: Mapping[tuple[Topic, int], int] = {}

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self._measure()
            await asyncio.sleep(_INTERVAL_SECONDS)

    def unresponsive_seconds(self) -> float | None:
        """The seconds since the last response, or ``None`` while that is not too long."""
        seconds = time.monotonic() - self._answers.until
        return seconds if seconds > _UNRESPONSIVE_SECONDS else None

    @property
    def answers(self) -> Answers:
        """Since when the brokers answer, and when they last did."""
        return self._answers

    async def close(self) -> None:
        """Disconnect."""
        await self._reader.close()

    async def _measure(self) -> None:
        lag = {}
        # A worker without partitions polls too: it needs to know whether the brokers respond.
        for partition in self._owned_partitions() or [0]:
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    ends = await self._reader.end_offsets(partition, self._topics)
            except (KafkaError, TimeoutError) as error:
                _log.warning("brokers unresponsive", partition=partition, error=repr(error))
                self._failed = True
                # A new connection may reach them where this one no longer does.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_TIMEOUT_SECONDS):
                        await self._reader.close()
                return
            now = time.monotonic()
            self._answers = Answers(now if self._failed else self._answers.since, now)
            self._failed = False
            if partition in self._owned_partitions():
                # An empty topic has no lag, whatever its end offset: its records have expired.
                for topic in self._topics:
                    lag[topic, partition] = max(0, ends.get(topic, 0) - self._next_offset(topic, partition))
        self.lag = lag
