"""Whether the brokers answer, and how far behind the data topics the worker is."""

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog
from aiokafka.errors import KafkaError

from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.broker_reader import BrokerReader

_log = structlog.get_logger()
_ASK_SECONDS = 10.0
_ANSWER_SECONDS = 5.0
# Longer than one question that goes unanswered takes to be noticed and asked again.
_SILENCE_SECONDS = 20.0


class BrokerMonitor:
    """Asks the brokers now and then how far the topics reach, over a connection of its own."""

    def __init__(
        self, reader: BrokerReader, owned: Callable[[], list[int]], reached: Callable[[Topic, int], int]
    ) -> None:
        self._reader = reader
        self._owned = owned
        self._reached = reached
        self._answered = time.monotonic()
        self.lag: Mapping[tuple[Topic, int], int] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        self._answered = time.monotonic()
        while True:
            await self._measure()
            await asyncio.sleep(_ASK_SECONDS)

    def silence(self) -> float | None:
        """For how many seconds the brokers have not answered, where that is too long."""
        silent = time.monotonic() - self._answered
        return silent if silent > _SILENCE_SECONDS else None

    async def close(self) -> None:
        """Disconnect."""
        await self._reader.close()

    async def _measure(self) -> None:
        lag = {}
        # A worker that owns nothing asks as well: the answer itself is what matters then.
        for partition in self._owned() or [0]:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    ends = await self._reader.end_offsets(partition)
            except (KafkaError, TimeoutError) as error:
                _log.warning("brokers do not answer", error=repr(error))
                return
            self._answered = time.monotonic()
            if partition in self._owned():
                # A topic that holds nothing is not behind, whatever was taken in of it once.
                for topic in DATA_TOPICS:
                    lag[topic, partition] = max(0, ends.get(topic, 0) - self._reached(topic, partition))
        self.lag = lag
