"""The coordinator with a table in memory, under crashes and a failing object store."""

import asyncio
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from foldtune.errors import ObjectStoreError
from foldtune.events import Event, FineTuneCancelled, FineTuneStatus, ModelReference, SnapshotPart, State, now
from foldtune.kafka import partition_of
from foldtune.object_store import ObjectStore
from foldtune.settings import KafkaSettings, Settings, WorkerSettings
from foldtune.topics import Topic, request_key
from streams.partitions.changelog_table import Changes
from streams.publishing.publisher import EventPublisher, OutgoingEvent, OutgoingRecord, outgoing_records
from streams.requests.coordinator import Coordinator
from tests.memory_table import MemoryTable
from tests.support import fine_tune_request

PARTITIONS = 2


class RecordingPublisher(EventPublisher):
    def __init__(self) -> None:
        self.sent: list[OutgoingRecord] = []

    async def publish(self, events: tuple[OutgoingEvent, ...], partition: int) -> None:
        await self.send(tuple(outgoing_records(events, partition)))

    async def send(self, records: tuple[OutgoingRecord, ...]) -> None:
        self.sent += records

    async def send_to_dead_letters(
        self, value: bytes | None, key: bytes | None, error: str, origin: tuple[str, int, int]
    ) -> None:
        raise AssertionError((value, key, error, origin))

    def jobs(self) -> int:
        return sum(record.topic == Topic.TRAINING_JOBS.label for record in self.sent)

    def states(self, request_id: str, model: str | None = None) -> list[State]:
        statuses = [
            FineTuneStatus.model_validate_json(record.value)
            for record in self.sent
            if record.topic == Topic.FINE_TUNE_STATUS.label
            and record.key == request_key(model or request_id, request_id)
        ]
        return [status.state for status in statuses if status.request_id == request_id]


class KilledError(Exception):
    """``kill -9``."""


class MortalBroker(MemoryTable, RecordingPublisher):
    """A table and a publisher that accept a number of records, and then the process is killed."""

    def __init__(self) -> None:
        MemoryTable.__init__(self)
        RecordingPublisher.__init__(self)
        self.remaining_writes = 1 << 30

    async def write(self, partition: int, changes: Changes) -> bool:
        for key, value in changes.items():
            self._count_write()
            await super().write(partition, {key: value})
        return True

    async def send(self, records: tuple[OutgoingRecord, ...]) -> None:
        for record in records:
            self._count_write()
            self.sent.append(record)

    def _count_write(self) -> None:
        if not self.remaining_writes:
            raise KilledError
        self.remaining_writes -= 1


class System:
    """A coordinator whose object store hangs, if called while ``hangs``, until it ``answers``."""

    def __init__(self, *, fails: bool = False, broker: MortalBroker | None = None) -> None:
        self._fails = fails
        self.answers = threading.Event()
        self.hangs = True
        store: Any = mock.create_autospec(ObjectStore, instance=True, bucket="bucket")
        store.uri.side_effect = lambda key: f"s3://bucket/{key}"
        store.put.side_effect = self._put
        settings = Settings(kafka=KafkaSettings(partitions=PARTITIONS), worker=WorkerSettings(min_examples=1))
        self.publisher = broker or RecordingPublisher()
        self._coordinator = Coordinator(broker or MemoryTable(), self.publisher, store, settings)

    def _put(self, *_: object) -> None:
        if self.hangs:
            self.answers.wait(30)
            if self._fails:
                raise ObjectStoreError("https://s3")

    async def handle(self, topic: Topic, model: str, event: Event) -> None:
        message = SimpleNamespace(value=event.encode(), topic=topic.label, partition=0, offset=0, key=None)
        await self._coordinator.handle(topic, partition_of(model, PARTITIONS), [message])

    async def request_with_snapshot(self, name: str) -> None:
        await self.handle(Topic.FINE_TUNE_REQUESTS, name, fine_tune_request(name, model=name))
        for partition in range(PARTITIONS):
            part = SnapshotPart(request_id=name, model=name, partition=partition, positives=30)
            await self.handle(Topic.SNAPSHOT_PARTS, name, part)

    async def ticks_until(self, jobs: int) -> None:
        async with asyncio.timeout(20):
            while self.publisher.jobs() < jobs:
                await self.tick()

    async def tick(self) -> None:
        for partition in range(PARTITIONS):
            await self._coordinator.tick(partition)
        await asyncio.sleep(0.05)


def test_a_hanging_manifest_upload_does_not_block_other_models() -> None:
    async def scenario() -> None:
        system = System(fails=True)
        await system.request_with_snapshot("first")
        await system.tick()
        system.hangs = False
        await system.request_with_snapshot("second")
        await system.ticks_until(jobs=1)
        system.answers.set()
        await system.ticks_until(jobs=2)
        await system.tick()
        assert system.publisher.jobs() == 2
        assert [system.publisher.states(name) for name in ("first", "second")] == [
            # Once more when the job waits for a launcher.
            [State.ACCEPTED, State.SNAPSHOTTING, State.SNAPSHOTTING]
        ] * 2

    asyncio.run(scenario())


def test_a_request_cancelled_during_the_manifest_upload_gets_no_job() -> None:
    async def scenario() -> None:
        system = System(fails=False)
        await system.request_with_snapshot("r")
        await system.tick()
        system.hangs = False
        cancel = FineTuneCancelled(request_id="r", model="r", requested_at=now())
        await system.handle(Topic.FINE_TUNE_REQUESTS, "r", cancel)
        system.answers.set()
        for _ in range(5):
            await system.tick()
        assert system.publisher.jobs() == 0
        assert system.publisher.states("r") == [State.ACCEPTED, State.SNAPSHOTTING, State.CANCELLED]

    asyncio.run(scenario())


@pytest.mark.parametrize("survived", range(14))
def test_a_transition_interrupted_by_a_crash_is_completed_or_repeated(survived: int) -> None:
    # The last part of a snapshot is a failure: the request ends, and the one that waits starts.
    async def scenario() -> None:
        broker = MortalBroker()
        system = System(broker=broker)
        for name in ("first", "second"):
            await system.handle(Topic.FINE_TUNE_REQUESTS, "m", fine_tune_request(name, model="m", seed=len(name)))
        parts = [SnapshotPart(request_id="first", model="m", partition=number, error="?") for number in range(2)]
        await system.handle(Topic.SNAPSHOT_PARTS, "m", parts[0])
        broker.remaining_writes = survived
        with suppress(KilledError):
            await system.handle(Topic.SNAPSHOT_PARTS, "m", parts[1])
        broker.remaining_writes = 1 << 30
        heir = System(broker=broker)
        # The offset was not written, so the part is redelivered; the client retries its requests.
        await heir.handle(Topic.SNAPSHOT_PARTS, "m", parts[1])
        for name in ("first", "second"):
            await heir.handle(Topic.FINE_TUNE_REQUESTS, "m", fine_tune_request(name, model="m", seed=len(name)))
        assert {state for state in broker.states("first", "m") if state.terminal} == {State.FAILED}
        assert broker.states("second", "m")[-1] is State.SNAPSHOTTING
        commands = [record.value for record in broker.sent if record.topic == Topic.SNAPSHOT_COMMANDS.label]
        assert any('"request_id":"second"' in command for command in commands)
        assert not list(broker.keys(partition_of("m", PARTITIONS), b"u|"))

    asyncio.run(scenario())


def same_partition(model: str) -> str:
    """Another model of the partition of ``model``."""
    names = (f"{model}-{number}" for number in range(100))
    return next(name for name in names if partition_of(name, PARTITIONS) == partition_of(model, PARTITIONS))


def test_two_models_may_use_one_id() -> None:
    async def scenario() -> None:
        system = System()
        models = ("sales", same_partition("sales"))
        for model in models:
            await system.handle(Topic.FINE_TUNE_REQUESTS, model, fine_tune_request("friday", model=model))
        cancel = FineTuneCancelled(request_id="friday", model=models[0], requested_at=now())
        await system.handle(Topic.FINE_TUNE_REQUESTS, models[0], cancel)
        assert system.publisher.states("friday", models[0])[-1] is State.CANCELLED
        assert system.publisher.states("friday", models[1]) == [State.ACCEPTED, State.SNAPSHOTTING]
        # What compaction leaves: the newest of each model, and under the former key that of any.
        newest = {record.key: record.value for record in system.publisher.sent if "status" in record.topic}
        assert set(newest) == {"friday", *(request_key(model, "friday") for model in models)}
        assert {record.partition for record in system.publisher.sent} == {None, partition_of("sales", PARTITIONS)}

    asyncio.run(scenario())


def test_a_request_of_another_partition_is_passed_on_and_ends_nothing() -> None:
    async def scenario() -> None:
        system = System()
        model = next(name for name in "abcdefgh" if partition_of(name, PARTITIONS) == 1)
        elsewhere = next(name for name in "abcdefgh" if partition_of(name, PARTITIONS) == 0)
        event = fine_tune_request("r", model=model)
        await system.handle(Topic.FINE_TUNE_REQUESTS, elsewhere, event)
        (record,) = system.publisher.sent
        assert (record.topic, record.partition, record.key) == (Topic.FINE_TUNE_REQUESTS.label, 1, model)
        assert record.value.encode() == event.encode()

    asyncio.run(scenario())


@pytest.mark.parametrize("survived", range(8))
def test_an_interrupted_rejection_ends_once(survived: int) -> None:
    async def scenario() -> None:
        broker = MortalBroker()
        bad = fine_tune_request("r", model="m", base_model=ModelReference(uri="hf://org/name"))
        broker.remaining_writes = survived
        with suppress(KilledError):
            await System(broker=broker).handle(Topic.FINE_TUNE_REQUESTS, "m", bad)
        published = len(broker.states("r", "m"))
        stored = any(key.startswith((b"r|", b"u|")) for key in broker.keys(partition_of("m", PARTITIONS), b""))
        assert stored or not published
        broker.remaining_writes = 1 << 30
        await System(broker=broker).handle(Topic.FINE_TUNE_REQUESTS, "m", bad)
        ends = {record.value for record in broker.sent if record.topic == Topic.FINE_TUNE_STATUS.label}
        assert len(ends) == 1

    asyncio.run(scenario())
