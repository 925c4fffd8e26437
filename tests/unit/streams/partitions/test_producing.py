"""What a worker learns from acknowledged records."""

import asyncio
import threading
from typing import Any
from unittest import mock

import pytest
from aiokafka.structs import RecordMetadata, TopicPartition
from structlog.testing import capture_logs

from streams.metrics import CLOCK_SKEW
from streams.partitions import producing
from streams.partitions.producing import acknowledged

NOW = 1_800_000_000.0


def acknowledge(timestamp: float, timestamp_type: int) -> None:
    async def wait() -> None:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(
            RecordMetadata("t", 0, TopicPartition("t", 0), 0, int(timestamp * 1000), timestamp_type, None)
        )
        await acknowledged(mock.Mock(), future)

    asyncio.run(wait())


def test_a_clock_that_differs_from_the_brokers_is_measured_and_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.partitions.producing.time.time", lambda: NOW)
    monkeypatch.setattr(producing, "_skewed", threading.Event())
    CLOCK_SKEW.set(0)
    with capture_logs() as logs:
        # Stamped by the producer, which is this worker.
        acknowledge(NOW - 300, timestamp_type=0)
        assert CLOCK_SKEW._value.get() == 0
        acknowledge(NOW + 10, timestamp_type=1)
        assert not logs
        acknowledge(NOW + 100, timestamp_type=1)
        acknowledge(NOW + 101, timestamp_type=1)
        assert CLOCK_SKEW._value.get() == -101
        acknowledge(NOW, timestamp_type=1)
        acknowledge(NOW - 61, timestamp_type=1)
    assert [(log["event"], log["log_level"], log["seconds"]) for log in logs] == [
        ("clock differs from the brokers'", "error", -100),
        ("clock differs from the brokers'", "error", 61),
    ]
