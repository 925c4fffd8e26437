"""Since when the brokers answer, by which standstills are measured."""

import asyncio
from typing import Any, cast

from aiokafka.errors import KafkaConnectionError

from foldtune.topics import Topic
from streams.partitions.broker_reader import BrokerReader
from streams.worker.broker_monitor import BrokerMonitor


class Reader:
    """Of a partition with ten records of a topic."""

    def __init__(self) -> None:
        self.gone = False

    async def end_offsets(self, *_: object) -> dict[Topic, int]:
        if self.gone:
            raise KafkaConnectionError
        return {Topic.CHAT_LOGS: 10}

    async def close(self) -> None:
        """Nothing is open."""


def test_the_time_of_answers_begins_anew_after_a_failure() -> None:
    async def scenario() -> None:
        reader = Reader()
        monitor = BrokerMonitor(cast(BrokerReader, reader), lambda: [3], lambda *_: 4)
        await monitor._measure()
        first = monitor.answers
        await monitor._measure()
        assert monitor.answers.since == first.since
        assert monitor.answers.until > first.until
        reader.gone = True
        before = monitor.answers
        await monitor._measure()
        assert monitor.answers == before
        reader.gone = False
        await monitor._measure()
        assert monitor.answers.since > before.until

    asyncio.run(scenario())


def test_the_lag_is_what_is_published_and_not_consumed_and_none_of_an_empty_topic() -> None:
    async def lag(next_offset: int) -> Any:
        monitor = BrokerMonitor(cast(BrokerReader, Reader()), lambda: [3], lambda *_: next_offset)
        await monitor._measure()
        return {topic: records for (topic, _), records in monitor.lag.items() if records}

    assert asyncio.run(lag(4)) == {Topic.CHAT_LOGS: 6}
    assert asyncio.run(lag(12)) == {}
