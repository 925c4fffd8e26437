"""A coordinator whose machine has another time than the brokers."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from foldtune import events
from foldtune.events import SnapshotPart, State
from foldtune.settings import WorkerSettings
from foldtune.topics import Topic
from streams.partitions import broker_clock
from streams.partitions.broker_clock import CLOCK
from streams.partitions.changelog_table import Changes
from tests.acknowledgement import acknowledgement
from tests.support import fine_tune_request
from tests.unit.streams.requests.test_coordinator import MortalBroker, System

TIMEOUT = WorkerSettings().snapshot_timeout
SECOND, YEAR = timedelta(seconds=1), timedelta(days=365)


class StampingBroker(MortalBroker):
    """Tells the time with each write."""

    time = datetime(2026, 11, 26, tzinfo=UTC)

    async def write(self, partition: int, changes: Changes) -> bool:
        written = await super().write(partition, changes)
        CLOCK.observe(acknowledgement(self.time))
        return written

    def states(self, request_id: str, model: str | None = None) -> list[State]:
        return list(dict.fromkeys(super().states(request_id, model)))


@pytest.mark.parametrize("skew", [YEAR, -YEAR])
@pytest.mark.parametrize("queued", [False, True])
def test_a_request_is_overdue_by_the_brokers_time(
    monkeypatch: pytest.MonkeyPatch, skew: timedelta, queued: bool
) -> None:
    broker = StampingBroker()
    start = broker.time

    def restarted(skew: timedelta) -> System:
        monkeypatch.setattr(CLOCK, "known", False)
        monkeypatch.setattr(CLOCK, "_newest", None)
        monkeypatch.setattr(events, "now", lambda: broker.time + skew)
        # Nothing but acknowledgements moves it.
        monkeypatch.setattr(broker_clock, "_since_boot", lambda: 0.0)
        system = System(broker=broker)
        system.hangs = False
        return system

    async def ends_at(limit: timedelta) -> None:
        """With a tick a second before it, and one a second after it, of workers that were just started."""
        broker.time = start + limit - SECOND
        await restarted(skew).tick()
        assert not broker.states("r")[-1].terminal
        broker.time = start + limit + SECOND
        await restarted(skew).tick()
        assert broker.states("r")[-1] is State.FAILED

    async def scenario() -> None:
        system = restarted(timedelta(0))
        await system.handle(Topic.FINE_TUNE_REQUESTS, "r", fine_tune_request("r", model="r"))
        if not queued:
            await ends_at(TIMEOUT)
            return
        for partition in range(2):
            part = SnapshotPart(request_id="r", model="r", partition=partition, positives=30)
            await system.handle(Topic.SNAPSHOT_PARTS, "r", part)
        await system.ticks_until(jobs=1)
        await ends_at(events.QUEUEING_TIME + events.REPORTING_TIME)

    asyncio.run(scenario())
