"""The coordinator over a table in memory: what it does where the object store or its events fail."""

import asyncio
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from foldtune.errors import ObjectStoreError
from foldtune.events import Event, FineTuneCancelled, FineTuneStatus, SnapshotPart, State, now
from foldtune.kafka import partition_of
from foldtune.object_store import ObjectStore
from foldtune.settings import KafkaSettings, Settings, WorkerSettings
from foldtune.topics import Topic
from streams.partitions.changelog_table import Changes
from streams.publishing.publisher import EventPublisher, OutgoingEvent, OutgoingRecord, outgoing_records
from streams.requests.coordinator import Coordinator
from tests.memory_table import MemoryTable
from tests.support import fine_tune_request

PARTITIONS = 2


class Recorded(EventPublisher):
    def __init__(self) -> None:
        self.sent: list[OutgoingRecord] = []

    async def publish(self, events: tuple[OutgoingEvent, ...], partition: int) -> None:
        await self.send(tuple(outgoing_records(events, partition)))

    async def send(self, records: tuple[OutgoingRecord, ...]) -> None:
        self.sent += records

    async def send_dead_letter(
        self, value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int]
    ) -> None:
        raise AssertionError((value, key, error, origin))

    def jobs(self) -> int:
        return sum(one.topic == Topic.TRAINING_JOBS.label for one in self.sent)

    def states(self, name: str) -> list[State]:
        found = [
            FineTuneStatus.model_validate_json(one.value)
            for one in self.sent
            if one.topic == Topic.FINE_TUNE_STATUS.label
        ]
        return [status.state for status in found if status.request_id == name]


class KilledError(Exception):
    """``kill -9``, as the coordinator does not see it."""


class Mortal(MemoryTable, Recorded):
    """A table and an outbox that take so many more records, and then their process is gone."""

    def __init__(self) -> None:
        MemoryTable.__init__(self)
        Recorded.__init__(self)
        self.left = 1 << 30

    async def write(self, partition: int, changes: Changes) -> bool:
        for key, value in changes.items():
            self._live()
            await super().write(partition, {key: value})
        return True

    async def send(self, records: tuple[OutgoingRecord, ...]) -> None:
        for record in records:
            self._live()
            self.sent.append(record)

    def _live(self) -> None:
        if not self.left:
            raise KilledError
        self.left -= 1


class System:
    """A coordinator whose object store hangs, when it is called while ``hangs``, until it ``answers``."""

    def __init__(self, *, refuses: bool = False, mortal: Mortal | None = None) -> None:
        self._refuses = refuses
        self.answers = threading.Event()
        self.hangs = True
        store: Any = mock.create_autospec(ObjectStore, instance=True, bucket="bucket")
        store.uri.side_effect = lambda key: f"s3://bucket/{key}"
        store.put.side_effect = self._put
        settings = Settings(kafka=KafkaSettings(partitions=PARTITIONS), worker=WorkerSettings(min_examples=1))
        self.outbox = mortal or Recorded()
        self._coordinator = Coordinator(mortal or MemoryTable(), self.outbox, store, settings)

    def _put(self, *_: object) -> None:
        if self.hangs:
            self.answers.wait(30)
            if self._refuses:
                raise ObjectStoreError("https://s3")

    async def take(self, topic: Topic, model: str, event: Event) -> None:
        message = SimpleNamespace(value=event.encode(), topic=topic.label, partition=0, offset=0, key=None)
        await self._coordinator.take(topic, partition_of(model, PARTITIONS), [message])

    async def request_with_snapshot(self, name: str) -> None:
        await self.take(Topic.FINE_TUNE_REQUESTS, name, fine_tune_request(name, model=name))
        for partition in range(PARTITIONS):
            part = SnapshotPart(request_id=name, model=name, partition=partition, positives=30)
            await self.take(Topic.SNAPSHOT_PARTS, name, part)

    async def ticks_until(self, jobs: int) -> None:
        async with asyncio.timeout(20):
            while self.outbox.jobs() < jobs:
                await self.tick()

    async def tick(self) -> None:
        for partition in range(PARTITIONS):
            await self._coordinator.tick(partition)
        await asyncio.sleep(0.05)


def test_while_the_store_hangs_over_one_models_manifest_other_models_go_on() -> None:
    async def story() -> None:
        system = System(refuses=True)
        await system.request_with_snapshot("first")
        await system.tick()
        system.hangs = False
        await system.request_with_snapshot("second")
        await system.ticks_until(jobs=1)
        system.answers.set()
        await system.ticks_until(jobs=2)
        await system.tick()
        assert system.outbox.jobs() == 2
        assert [system.outbox.states(name) for name in ("first", "second")] == [
            [State.ACCEPTED, State.SNAPSHOTTING]
        ] * 2

    asyncio.run(story())


def test_a_request_that_ends_while_its_manifest_is_written_has_no_job() -> None:
    async def story() -> None:
        system = System(refuses=False)
        await system.request_with_snapshot("r")
        await system.tick()
        system.hangs = False
        cancel = FineTuneCancelled(request_id="r", model="r", requested_at=now())
        await system.take(Topic.FINE_TUNE_REQUESTS, "r", cancel)
        system.answers.set()
        for _ in range(5):
            await system.tick()
        assert system.outbox.jobs() == 0
        assert system.outbox.states("r") == [State.ACCEPTED, State.SNAPSHOTTING, State.CANCELLED]

    asyncio.run(story())


@pytest.mark.parametrize("survived", range(14))
def test_a_decision_that_a_crash_cuts_in_two_is_made_whole_or_made_again(survived: int) -> None:
    # The last part of a snapshot, failed: the request ends, and the one that waited for it begins.
    async def story() -> None:
        mortal = Mortal()
        system = System(mortal=mortal)
        for name in ("first", "second"):
            await system.take(Topic.FINE_TUNE_REQUESTS, "m", fine_tune_request(name, model="m", seed=len(name)))
        parts = [SnapshotPart(request_id="first", model="m", partition=number, error="?") for number in range(2)]
        await system.take(Topic.SNAPSHOT_PARTS, "m", parts[0])
        mortal.left = survived
        with suppress(KilledError):
            await system.take(Topic.SNAPSHOT_PARTS, "m", parts[1])
        mortal.left = 1 << 30
        heir = System(mortal=mortal)
        # Its place was not written, so the event comes again; and the requests, from a client that is not sure.
        await heir.take(Topic.SNAPSHOT_PARTS, "m", parts[1])
        for name in ("first", "second"):
            await heir.take(Topic.FINE_TUNE_REQUESTS, "m", fine_tune_request(name, model="m", seed=len(name)))
        assert {state for state in mortal.states("first") if state.terminal} == {State.FAILED}
        assert mortal.states("second")[-1] is State.SNAPSHOTTING
        commands = [one.value for one in mortal.sent if one.topic == Topic.SNAPSHOT_COMMANDS.label]
        assert any('"request_id":"second"' in command for command in commands)
        assert not list(mortal.keys(partition_of("m", PARTITIONS), b"u|"))

    asyncio.run(story())
