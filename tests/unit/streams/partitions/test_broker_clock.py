"""What time a worker goes by, when its own clock is wrong."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from structlog.testing import capture_logs

from foldtune import events
from streams.metrics import CLOCK_SKEW
from streams.partitions import broker_clock, producing
from streams.partitions.broker_clock import BrokerClock
from streams.partitions.producing import acknowledged
from tests.acknowledgement import acknowledgement

NOW = datetime(2026, 11, 26, tzinfo=UTC)
YEAR = timedelta(days=365)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> BrokerClock:
    found = BrokerClock()
    monkeypatch.setattr(producing, "CLOCK", found)
    return found


def acknowledge(moment: datetime, *, stamped: bool = True) -> None:
    async def wait() -> None:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(acknowledgement(moment, stamped=stamped))
        await acknowledged(mock.Mock(), future)

    asyncio.run(wait())


def test_a_clock_that_differs_from_the_brokers_is_measured_and_logged_once(
    clock: BrokerClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.partitions.broker_clock.time.time", NOW.timestamp)
    CLOCK_SKEW.set(0)
    with capture_logs() as logs:
        # Stamped by the producer, which is this worker.
        acknowledge(NOW - seconds(300), stamped=False)
        assert (clock.known, clock.stamped, CLOCK_SKEW._value.get()) == (True, False, 0)
        acknowledge(NOW + seconds(10))
        assert not logs
        acknowledge(NOW + seconds(100))
        acknowledge(NOW + seconds(101))
        assert CLOCK_SKEW._value.get() == -101
        acknowledge(NOW)
        acknowledge(NOW - seconds(61))
    assert [(log["event"], log["log_level"], log["seconds"]) for log in logs] == [
        ("clock differs from the brokers'", "error", -100),
        ("clock differs from the brokers'", "error", 61),
    ]


def test_the_time_is_the_brokers_however_the_machines_clock_jumps(
    clock: BrokerClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    since_boot = 1_000.0
    monkeypatch.setattr(broker_clock, "_since_boot", lambda: since_boot)
    for skew in (YEAR, -YEAR):
        monkeypatch.setattr(events, "now", lambda skew=skew: NOW + skew)
        acknowledge(NOW)
        assert clock.now() == NOW
        since_boot += 90
        assert clock.now() == NOW + seconds(90)
    # The newest acknowledgement counts, also where it sets the time back.
    acknowledge(NOW - seconds(5))
    assert clock.now() == NOW - seconds(5)


def test_where_brokers_do_not_stamp_the_time_is_the_machines(
    clock: BrokerClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "now", lambda: NOW)
    assert (clock.now(), clock.known) == (NOW, False)
    # The second is no time that can be meant.
    for moment, stamped in ((NOW - YEAR, False), (datetime(1970, 1, 2, tzinfo=UTC), True)):
        acknowledge(moment, stamped=stamped)
        assert (clock.now(), clock.known, clock.stamped) == (NOW, True, False)
