"""The connection beside the worker's own consumption."""

import asyncio
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer

from foldtune.settings import KafkaSettings
from streams.partitions.broker_reader import BrokerReader


def test_a_read_does_not_wait_long_for_the_fetch_that_the_last_one_left_at_the_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(_: AIOKafkaConsumer) -> None:
        pass

    async def scenario() -> None:
        reader = BrokerReader(KafkaSettings())
        consumer = await reader._connect()
        await reader.close()
        assert cast(Any, consumer)._fetch_max_wait_ms == 100

    monkeypatch.setattr(AIOKafkaConsumer, "start", nothing)
    asyncio.run(scenario())
