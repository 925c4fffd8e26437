"""Workers that all believe to own one partition, whose records land late, in part or never."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain, repeat
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldtune.events import Event, FineTuneCancelled, FineTuneStatus, State, now
from foldtune.settings import KafkaSettings, Settings, WorkerSettings
from foldtune.topics import Topic
from streams.errors import PartitionLostError
from streams.partitions.fencing import FencedTable
from streams.publishing.publisher import EventPublisher, OutgoingRecord
from streams.requests.coordinator import Coordinator
from tests.examples import examples
from tests.memory_table import Changelog, ReplicaTable
from tests.support import fine_tune_request

REQUESTS = ("r0", "r1", "r2")
OFFSET = b"o|events"
# Every request is overdue at the next tick.
SETTINGS = Settings(kafka=KafkaSettings(partitions=1), worker=WorkerSettings(snapshot_timeout=timedelta(0)))


class Published(EventPublisher):
    """Appends what lands to the topics, of all workers."""

    def __init__(self, topics: list[OutgoingRecord], worker: "Worker") -> None:
        self._topics = topics
        self._worker = worker

    async def send(self, records: tuple[OutgoingRecord, ...]) -> tuple[OutgoingRecord, ...]:
        await self._worker.deliver([partial(self._topics.append, record) for record in records])
        return ()

    async def send_to_dead_letters(
        self,
        value: bytes | None,
        key: bytes | None,
        error: str,
        origin: tuple[str, int, int],
        replay_of: bytes | None = None,
    ) -> None:
        raise AssertionError((value, key, error, origin, replay_of))


class Worker:
    """Handles the events from the offset in its table on, until it is killed; its records wait for ``land``."""

    def __init__(self, changelog: Changelog, topics: list[OutgoingRecord], events: list[tuple[Topic, Event]]) -> None:
        self.under_way: list[Callable[[], None]] = []
        self._landed: asyncio.Future[None] | None = None
        self._events = events
        self._table = ReplicaTable(changelog, self.deliver)
        store: Any = mock.Mock()
        self._coordinator = Coordinator(self._table, Published(topics, self), store, SETTINGS, no_statuses)
        self.idle = False
        self._task = asyncio.create_task(self._run())

    async def deliver(self, records: Sequence[Callable[[], None]]) -> None:
        if records:
            self.under_way = list(records)
            self._landed = asyncio.get_running_loop().create_future()
            await self._landed

    def land(self) -> None:
        """The next record under way lands; after the last one the worker goes on."""
        self.under_way.pop(0)()
        if not self.under_way and self._landed:
            self._landed.set_result(None)

    async def kill(self) -> list[Callable[[], None]]:
        """End the process; what it has under way may still land."""
        self._task.cancel()
        await asyncio.wait([self._task])
        return self.under_way

    async def pause(self) -> None:
        """Let the worker go on until it waits for its records."""
        self.idle = False
        for _ in range(100):
            if self.under_way or self.idle or self._task.done():
                break
            await asyncio.sleep(0)
        if self._task.done():
            self._task.result()

    async def finish(self) -> None:
        """Handle all events, without a rival."""
        for _ in range(2000):
            await self.pause()
            if self.under_way:
                self.land()
            elif self.idle:
                return
        raise AssertionError("the worker does not come to an end")

    async def _run(self) -> None:
        while True:
            try:
                position = int(self._table.get(0, OFFSET) or 0)
                for offset, (topic, event) in list(enumerate(self._events))[position:]:
                    message = SimpleNamespace(
                        value=event.encode(), topic=topic.label, partition=0, offset=offset, timestamp=-1
                    )
                    await self._coordinator.handle(topic, 0, [message])
                    await self._table.write(0, {OFFSET: b"%d" % (offset + 1)})
                await self._coordinator.tick(0)
                self.idle = True
            except PartitionLostError:
                pass
            await asyncio.sleep(0)


async def no_statuses(_: int) -> AsyncIterator[Any]:
    """Of no other app id."""
    records: tuple[Any, ...] = ()
    for record in records:
        yield record


def events() -> list[tuple[Topic, Event]]:
    """Requests that wait for each other, their reports, and a cancellation."""
    report = partial(FineTuneStatus, model="m", at=now())
    return [
        *[(Topic.FINE_TUNE_REQUESTS, fine_tune_request(name, model="m", seed=n)) for n, name in enumerate(REQUESTS)],
        (Topic.TRAINING_REPORTS, report(request_id="r0", state=State.RUNNING)),
        (Topic.FINE_TUNE_REQUESTS, FineTuneCancelled(request_id="r1", model="m", requested_at=now())),
        (Topic.TRAINING_REPORTS, report(request_id="r0", state=State.COMPLETED)),
        (Topic.TRAINING_REPORTS, report(request_id="r2", state=State.COMPLETED)),
        (Topic.FINE_TUNE_REQUESTS, fine_tune_request("r0", model="m")),
    ]


async def history(random: Random) -> None:
    changelog, topics, inputs = Changelog(), list[OutgoingRecord](), events()
    workers = [Worker(changelog, topics, inputs) for _ in range(3)]
    # Of workers that are gone, one list for each call: their records land in this order, or never.
    late: list[list[Callable[[], None]]] = []
    for _ in range(random.randrange(20, 300)):
        number = random.randrange(len(workers))
        await workers[number].pause()
        choice = random.random()
        if choice < 0.03:
            late.append(await workers[number].kill())
            workers[number] = Worker(changelog, topics, inputs)
        elif choice < 0.1 and late and (records := random.choice(late)):
            records.pop(0)()
        else:
            # In runs, so that one worker gets far while the others' records are under way.
            for _ in range(random.choice((1, 1, 3, 20))):
                await workers[number].pause()
                if workers[number].under_way:
                    workers[number].land()
    late += [await worker.kill() for worker in workers]
    for records in late:
        for record in records[: random.randrange(len(records) + 1)]:
            record()
    heir = Worker(changelog, topics, inputs)
    await heir.finish()
    # What lands after that changes nothing any more.
    for records in late:
        for record in records:
            record()
    await heir.kill()
    check(changelog, topics)


def check(changelog: Changelog, topics: list[OutgoingRecord]) -> None:
    ends: dict[str, set[str]] = defaultdict(set)
    # What compaction leaves.
    newest: dict[str | None, str] = {}
    for record in topics:
        if record.topic == Topic.FINE_TUNE_STATUS.label:
            newest[record.key] = record.value
            if FineTuneStatus.model_validate_json(record.value).state.terminal:
                ends[json.loads(record.value)["request_id"]].add(record.value)
    stored = {
        key.decode().split("|")[2]: value.decode() for key, value in changelog.recovered().items() if key[:1] == b"r"
    }
    assert set(stored) == set(REQUESTS)
    for name in REQUESTS:
        assert ends[name] == {stored[name]} == {newest[f"m/{name}"]}


def test_of_two_workers_that_take_over_at_once_one_may_write() -> None:
    async def scenario() -> None:
        changelog = Changelog()

        def worker(pauses: Iterable[int]) -> FencedTable:
            turns = iter(pauses)

            async def deliver(records: Sequence[Callable[[], None]]) -> None:
                if records:
                    await asyncio.sleep(0)
                    for record in records:
                        record()
                    for _ in range(next(turns)):
                        await asyncio.sleep(0)

            return FencedTable(ReplicaTable(changelog, deliver), (b"m|",))

        # In step until both have claimed, each before it sees the other's claim; then one is slower.
        workers = worker(repeat(1)), worker(chain(repeat(1, 2), repeat(20)))
        await asyncio.gather(*(each.synchronize(0) for each in workers))
        writes = [each.write(0, {b"m|model": b"state"}) for each in workers]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert [isinstance(outcome, PartitionLostError) for outcome in outcomes].count(True) == 1

    asyncio.run(asyncio.wait_for(scenario(), 5))


@pytest.mark.slow
@settings(max_examples=examples(10), deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_request_ends_once_whoever_writes_late(random: Random) -> None:
    asyncio.run(history(random))
