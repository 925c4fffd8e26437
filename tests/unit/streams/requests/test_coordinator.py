"""The coordinator with a table in memory, under crashes and a failing object store."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from aiokafka.errors import KafkaTimeoutError
from pydantic import ValidationError

from foldtune.errors import InvalidEventError, ObjectMissingError, ObjectStoreError
from foldtune.events import (
    Event,
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    FolderCount,
    ModelReference,
    ModelReviewed,
    PolicyDecided,
    RetrainingPolicy,
    SnapshotPart,
    State,
    TrainingFinished,
    TrainingJob,
    TrainingProgressed,
    now,
)
from foldtune.kafka import partition_of
from foldtune.knobs import DataSelection, TrainingKnobs
from foldtune.object_keys import snapshot_manifest_key
from foldtune.object_store import ObjectStore
from foldtune.policy import Rule
from foldtune.reasons import kind_of
from foldtune.request_ids import scheduled_request
from foldtune.settings import (
    KafkaSettings,
    PolicyRule,
    PolicySettings,
    RequestSettings,
    ScheduleSettings,
    Settings,
    WorkerSettings,
)
from foldtune.testing import FakeClock
from foldtune.topics import Topic, request_key
from streams.errors import UnreadableStateError
from streams.metrics import SKIPPED_RECORDS
from streams.partitions.changelog_table import Changes
from streams.partitions.consumer import is_at_fault
from streams.partitions.producing import brokers_at_fault
from streams.publishing.publisher import EventPublisher, OutgoingRecord
from streams.requests import retraining_policy
from streams.requests.coordinator import Coordinator
from streams.requests.policies import Policies
from streams.requests.rejections import Rejections
from streams.requests.retraining_policy import PolicyState, Situation
from tests.memory_table import MemoryTable
from tests.support import fine_tune_request

PARTITIONS = 2


class RecordingPublisher(EventPublisher):
    def __init__(self) -> None:
        self.sent: list[OutgoingRecord] = []
        self.limits: dict[str, int] = {}

    async def send(self, records: tuple[OutgoingRecord, ...]) -> tuple[OutgoingRecord, ...]:
        # As the brokers do.
        fitting = [record for record in records if len(record.value) < self.limits.get(record.topic, 1 << 20)]
        self.sent += fitting
        return tuple(record for record in records if record not in fitting)

    async def send_to_dead_letters(
        self,
        value: bytes | None,
        key: bytes | None,
        error: str,
        origin: tuple[str, int, int],
        replay_of: bytes | None = None,
    ) -> None:
        raise AssertionError((value, key, error, origin, replay_of))

    def jobs(self) -> int:
        return sum(record.topic == Topic.TRAINING_JOBS.label for record in self.sent)

    def states(self, request_id: str, model: str | None = None) -> list[State]:
        return [status.state for status in self.statuses(request_id, model)]

    def statuses(self, request_id: str, model: str | None = None) -> list[FineTuneStatus]:
        statuses = [
            FineTuneStatus.model_validate_json(record.value)
            for record in self.sent
            if record.topic == Topic.FINE_TUNE_STATUS.label
            and record.key in {(key := request_key(model or request_id, request_id)), f"{key}/progress"}
        ]
        return [status for status in statuses if status.request_id == request_id]


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

    async def send(self, records: tuple[OutgoingRecord, ...]) -> tuple[OutgoingRecord, ...]:
        for record in records:
            self._count_write()
            self.sent.append(record)
        return ()

    def _count_write(self) -> None:
        if not self.remaining_writes:
            raise KilledError
        self.remaining_writes -= 1


class System:
    """A coordinator whose object store hangs, if called while ``hangs``, until it ``answers``."""

    def __init__(
        self,
        *,
        fails: bool = False,
        broker: MortalBroker | None = None,
        partitions: int = PARTITIONS,
        clock: Callable[[], datetime] = now,
        policies: Callable[[Settings], Policies] = Policies,
        rejections: Rejections | None = None,
        **sections: Any,
    ) -> None:
        self._fails = fails
        self._partitions = partitions
        self.answers = threading.Event()
        self.hangs = True
        # The next manifest, after it was found.
        self.deletes = False
        self.manifests: dict[str, bytes] = {}
        self.threads: set[str] = set()
        store: Any = mock.create_autospec(ObjectStore, instance=True, bucket="bucket")
        store.uri.side_effect = lambda key: f"s3://bucket/{key}"
        store.put_if_absent.side_effect = self._put
        store.get.side_effect = self._get
        settings = Settings(
            kafka=KafkaSettings(partitions=partitions),
            worker=WorkerSettings(min_examples=1),
            **sections,
        )
        self.publisher = broker or RecordingPublisher()
        self.table = broker or MemoryTable()
        self.published_before: list[FineTuneStatus] = []
        # How many of these the brokers tell before they no longer answer.
        self.silent_after: int | None = None
        self._coordinator = Coordinator(
            *(self.table, self.publisher, store, settings, self._statuses),
            policies=policies(settings),
            rejections=rejections,
            clock=clock,
        )

    async def _statuses(self, partition: int) -> AsyncIterator[Any]:
        for number, status in enumerate(self.published_before):
            if number == self.silent_after:
                raise KafkaTimeoutError
            if partition_of(status.model, self._partitions) == partition:
                yield SimpleNamespace(value=status.encode())
        if self.silent_after is not None:
            raise KafkaTimeoutError

    def _put(self, key: str, content: bytes) -> bool:
        self.threads.add(threading.current_thread().name)
        if self.hangs:
            self.answers.wait(30)
            if self._fails:
                raise ObjectStoreError("https://s3")
        return not self.deletes and self.manifests.setdefault(key, content) is content

    def _get(self, key: str) -> bytes:
        if self.deletes:
            self.deletes = False
            raise ObjectMissingError(key)
        return self.manifests[key]

    async def handle(self, topic: Topic, model: str, event: Event) -> None:
        await self.handle_raw(topic, model, event.encode())

    async def handle_raw(self, topic: Topic, model: str, value: bytes, timestamp: int = -1) -> None:
        message = SimpleNamespace(value=value, topic=topic.label, partition=0, offset=0, key=None, timestamp=timestamp)
        await self._coordinator.handle(topic, partition_of(model, self._partitions), [message])

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
        for partition in range(self._partitions):
            await self._coordinator.tick(partition)
        await asyncio.sleep(0.05)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_manifest_that_is_deleted_while_it_is_compared_is_uploaded_again() -> None:
    async def scenario() -> None:
        system = System()
        system.hangs = False
        system.deletes = True
        await system.request_with_snapshot("r")
        await system.ticks_until(jobs=1)
        assert system.publisher.states("r")[-1] is State.SNAPSHOTTING

    asyncio.run(scenario())


def reviews(*, fail: bool = False) -> Rejections:
    """Two versions of ``r`` were rejected, one was approved, and one of another model was rejected."""
    said = [("r", "000002", False), ("r", "000001", True), ("r", "000001", False), ("s", "000003", False)]
    said += [("r", "000004", True)]

    async def read(partition: int, first: int) -> AsyncIterator[Any]:
        if fail:
            raise KafkaTimeoutError
        for offset, (model, version, approved) in enumerate(said if partition == 0 else []):
            event = ModelReviewed(model=model, version=version, approved=approved, by="ann", at=now())
            if offset >= first:
                yield SimpleNamespace(value=event.encode(), offset=offset, partition=partition)
        if partition == 0 and first <= len(said):
            yield SimpleNamespace(value=b"{}", offset=len(said), partition=partition)

    return Rejections(read, PARTITIONS)


@pytest.mark.parametrize("fail", [False, True])
def test_a_job_names_the_rejected_versions_of_its_model(fail: bool) -> None:
    async def scenario() -> TrainingJob:
        system = System(rejections=reviews(fail=fail))
        system.hangs = False
        await system.request_with_snapshot("r")
        await system.ticks_until(jobs=1)
        (value,) = [record.value for record in system.publisher.sent if record.topic == Topic.TRAINING_JOBS.label]
        return TrainingJob.model_validate_json(value)

    job = asyncio.run(scenario())
    assert job.rejected_versions == (() if fail else ("000001", "000002"))
    assert any("rejected version" in warning for warning in job.warnings) == fail


def test_reviews_are_read_on_from_where_they_were_read_to() -> None:
    rejections = reviews()

    async def twice() -> None:
        before = SKIPPED_RECORDS.labels(Topic.REVIEWS.label)._value.get()
        for _ in range(2):
            assert await rejections.of("r") == ("000001", "000002")
        assert rejections._next_offsets == {0: 6}
        # The last one is not valid.
        assert SKIPPED_RECORDS.labels(Topic.REVIEWS.label)._value.get() == before + 1

    asyncio.run(twice())


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


@pytest.mark.parametrize("survived", range(20))
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
        assert not [key for key in broker.keys(partition_of("m", PARTITIONS), b"") if b"|u|" in key]

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
        ended, other = (request_key(model, "friday") for model in models)
        assert set(newest) == {"friday", ended, f"{ended}/progress", f"{other}/progress"}
        assert {record.partition for record in system.publisher.sent} == {None, partition_of("sales", PARTITIONS)}

    asyncio.run(scenario())


def test_a_request_is_new_where_another_model_has_ended_one_of_its_id() -> None:
    async def scenario() -> None:
        system = System()
        first, second = "sales", same_partition("sales")
        await system.handle(Topic.FINE_TUNE_REQUESTS, first, fine_tune_request("friday", model=first))
        cancel = FineTuneCancelled(request_id="friday", model=first, requested_at=now())
        await system.handle(Topic.FINE_TUNE_REQUESTS, first, cancel)
        await system.handle(Topic.FINE_TUNE_REQUESTS, second, fine_tune_request("friday", model=second))
        assert system.publisher.states("friday", second) == [State.ACCEPTED, State.SNAPSHOTTING]

    asyncio.run(scenario())


def test_requests_wait_up_to_the_bytes_that_one_record_takes() -> None:
    async def scenario() -> None:
        system = System()
        for number in range(6):
            names = tuple(f"{number}-{name}".ljust(250, "x") for name in range(800))
            request = fine_tune_request(f"r{number}", model="m", data=DataSelection(folders=names))
            await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        states = [last_status(system, f"r{number}").state for number in range(6)]
        assert states == [State.SNAPSHOTTING, *2 * [State.WAITING], *3 * [State.REJECTED]]
        assert "bytes wait for 'm', at most 786432" in last_status(system, "r5").reasons[0]

    asyncio.run(scenario())


def test_no_two_states_of_a_model_are_alike() -> None:
    """Else what was to follow from an earlier one would follow once more."""

    async def scenario() -> None:
        system = System()
        written: list[bytes] = []
        write = system.table.write

        async def record(partition: int, changes: Changes) -> bool:
            written.extend(value for key, value in changes.items() if key.endswith(b"|m|r") and value)
            return await write(partition, changes)

        with mock.patch.object(system.table, "write", record):
            for _ in range(2):
                # Known, cancelled, and idle again.
                await system.handle(Topic.FINE_TUNE_REQUESTS, "r", fine_tune_request("r", model="r"))
                cancel = FineTuneCancelled(request_id="r", model="r", requested_at=now())
                await system.handle(Topic.FINE_TUNE_REQUESTS, "r", cancel)
        assert len(written) == len(set(written)) == 3

    asyncio.run(scenario())


def test_manifests_are_uploaded_in_threads_of_their_own() -> None:
    async def scenario() -> None:
        system = System()
        system.hangs = False
        await system.request_with_snapshot("r")
        await system.ticks_until(jobs=1)
        assert {name.partition("_")[0] for name in system.threads} == {"manifests"}

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
        # Passed on it would be young again.
        old = int((now() - timedelta(days=8)).timestamp() * 1000)
        with pytest.raises(InvalidEventError, match="of another partition, published more than 7 days"):
            await system.handle_raw(Topic.FINE_TUNE_REQUESTS, elsewhere, event.encode(), old)
        assert system.publisher.sent == [record]

    asyncio.run(scenario())


@pytest.mark.parametrize("survived", range(14))
def test_an_interrupted_rejection_ends_once(survived: int) -> None:
    async def scenario() -> None:
        broker = MortalBroker()
        bad = fine_tune_request("r", model="m", base_model=ModelReference(uri="hf://org/name"))
        broker.remaining_writes = survived
        with suppress(KilledError):
            await System(broker=broker).handle(Topic.FINE_TUNE_REQUESTS, "m", bad)
        published = len(broker.states("r", "m"))
        stored = any(key.startswith(b"r|") or b"|u|" in key for key in broker.keys(partition_of("m", PARTITIONS), b""))
        assert stored or not published
        broker.remaining_writes = 1 << 30
        await System(broker=broker).handle(Topic.FINE_TUNE_REQUESTS, "m", bad)
        ends = {record.value for record in broker.sent if record.topic == Topic.FINE_TUNE_STATUS.label}
        assert len(ends) == 1

    asyncio.run(scenario())


# ── Bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_bounds(steps: Callable[[System], Coroutine[Any, Any, None]], partitions: int = PARTITIONS) -> System:
    """A system after some steps, in which nothing that was written or published was too large."""
    system = System(partitions=partitions)
    system.hangs = False
    asyncio.run(steps(system))
    return system


def last_status(system: System, request_id: str, model: str = "m") -> FineTuneStatus:
    return system.publisher.statuses(request_id, model)[-1]


def test_twenty_thousand_unknown_names_are_rejected_in_a_short_status() -> None:
    names = {kind: tuple(f"{kind}{number:05}" for number in range(10_000)) for kind in ("f", "a")}
    request = fine_tune_request("r", model="m", data=DataSelection(folders=names["f"], agents=names["a"]))
    assert len(request.encode()) < 256 * 1024

    async def steps(system: System) -> None:
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        for partition in range(PARTITIONS):
            part = SnapshotPart(request_id="r", model="m", partition=partition, positives=30)
            await system.handle(Topic.SNAPSHOT_PARTS, "m", part)

    status = last_status(run_bounds(steps), "r")
    assert status.state is State.REJECTED
    assert len(status.encode()) < 2_000
    assert "data.folders: 9990 more unknown folders" in status.reasons
    assert "data.agents: no logs of 9990 more" in status.reasons


def test_a_request_of_a_megabyte_with_long_unknown_fields_is_rejected_in_a_short_status() -> None:
    fields = ",".join(f'"{str(number) * 50_000}":1' for number in range(1, 10))
    value = fine_tune_request("r", model="m").encode()[:-1] + b',"x":{%s}}' % fields.encode()

    async def steps(system: System) -> None:
        await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", value)
        await system.handle_raw(
            Topic.FINE_TUNE_REQUESTS,
            "m",
            b'{"type":"fine_tune_requested","request_id":"s","model":"m","dataset":{"%s":1}}' % (b"k" * 200_000),
        )

    system = run_bounds(steps)
    assert last_status(system, "r").reasons == (f"event: {len(value)} bytes, at most 262144",)
    assert f"dataset.{'k' * 100}…: unknown field" in last_status(system, "s").reasons
    assert len(last_status(system, "s").encode()) < 1_000


def test_two_thousand_identical_requests_wait_up_to_the_bound_and_the_others_are_rejected_by_name() -> None:
    long = "\\" * 400

    async def steps(system: System) -> None:
        for number in range(60):
            await system.handle(Topic.FINE_TUNE_REQUESTS, "m", fine_tune_request(f"r{number}", model="m"))
        failed = FineTuneStatus(
            request_id="r0", model="m", state=State.FAILED, at=now(), reasons=(long,) * 30, warnings=(long,) * 30
        )
        await system.handle(Topic.TRAINING_REPORTS, "m", failed)
        await system.handle(Topic.TRAINING_REPORTS, "m", failed.model_copy(update={"request_id": "r1"}))

    system = run_bounds(steps)
    ends = {number: last_status(system, f"r{number}") for number in range(60)}
    assert {number for number, status in ends.items() if status.state is State.REJECTED} == set(range(51, 60))
    assert ends[59].reasons == ("model: 51 requests wait for 'm', at most 50",)
    assert all(ends[number].state is State.FAILED for number in range(51))


def test_the_parts_of_all_partitions_name_each_requested_folder_and_agent_once() -> None:
    agents = tuple(f"agent-{number:030}" for number in range(1_500))
    folders = tuple(f"folder-{number:030}" for number in range(1_500))
    request = fine_tune_request("r", model="m", data=DataSelection(folders=folders, agents=agents))
    counts = tuple(FolderCount(folder_id=folder, examples=1, documents=1) for folder in folders)

    async def steps(system: System) -> None:
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        for partition in range(16):
            part = SnapshotPart(
                request_id="r", model="m", partition=partition, positives=30, agents=(*agents, "other"), folders=counts
            )
            await system.handle(Topic.SNAPSHOT_PARTS, "m", part)
        await system.ticks_until(jobs=1)

    system = run_bounds(steps, partitions=16)
    assert last_status(system, "r").state is State.SNAPSHOTTING
    (key,) = (key for key in system.table.keys(partition_of("m", 16), b"") if key.endswith(b"|m|m"))
    state = system.table.get(partition_of("m", 16), key) or b""
    assert state.count(b"agent-") == 2 * len(agents)


@pytest.mark.parametrize("topic", [Topic.SNAPSHOT_COMMANDS, Topic.TRAINING_JOBS])
def test_a_request_fails_where_what_it_needs_cannot_be_written(topic: Topic) -> None:
    async def steps(system: System) -> None:
        system.publisher.limits[topic.label] = 10
        await system.request_with_snapshot("r")
        for _ in range(5):
            await system.tick()

    status = last_status(run_bounds(steps), "r", "r")
    assert status.state is State.FAILED
    assert status.reasons[0].startswith(f"{topic.label}: a record of ")


def test_a_model_whose_state_cannot_be_decoded_does_not_stop_the_others() -> None:
    async def steps(system: System) -> None:
        partition = partition_of("sick", PARTITIONS)
        await system.table.write(partition, {b"m|sick": b'{"model": 5}', b"u|sick|x": b"\xff", b"u|well|y": b"{}"})
        with pytest.raises(UnreadableStateError, match=r"m\|sick"):
            await system.handle(Topic.FINE_TUNE_REQUESTS, "sick", fine_tune_request("r", model="sick"))
        for name in ("a", "b", "c", "d"):
            await system.request_with_snapshot(name)
        await system.ticks_until(jobs=4)

    run_bounds(steps)


def test_an_event_that_names_no_partition_of_ours_is_refused() -> None:
    async def steps(system: System) -> None:
        part = SnapshotPart(request_id="r", model="m", partition=PARTITIONS, positives=30)
        with pytest.raises(InvalidEventError, match="event: partition 2, at most 1"):
            await system.handle(Topic.SNAPSHOT_PARTS, "m", part)

    run_bounds(steps)


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"state": State.ACCEPTED}, "state: accepted, which no launcher or trainer reports"),
        ({"state": State.REJECTED}, "state: rejected, which"),
        ({"state": State.COMPLETED, "model_uri": "s3://bucket/models/other/v1"}, "model_uri: '.*' is not below "),
        ({"state": State.COMPLETED, "model_uri": "s3://elsewhere/models/m/v1"}, "model_uri: '.*' is not below "),
    ],
    ids=["accepted", "rejected", "another model", "another bucket"],
)
def test_a_report_that_no_run_of_this_model_makes_is_refused(report: dict[str, Any], reason: str) -> None:
    async def steps(system: System) -> None:
        await system.request_with_snapshot("m")
        await system.ticks_until(jobs=1)
        status = FineTuneStatus(request_id="m", model="m", at=now(), **report)
        with pytest.raises(InvalidEventError, match=reason):
            await system.handle(Topic.TRAINING_REPORTS, "m", status)

    assert last_status(run_bounds(steps), "m").state is State.SNAPSHOTTING


# ── What a request may ask for ───────────────────────────────────────────────────────────────────────────────────────

COMMIT = "0123456789" * 4
ALLOWED = RequestSettings(
    models=("m",), base_models=("hf://org/", "hf://other/name", "s3://bucket/bases/", "s3://elsewhere/")
)


@pytest.mark.parametrize(
    ("model", "changes", "reason"),
    [
        ("m", {}, None),
        ("n", {}, "model: 'n' is none of requests.models"),
        ("m", {"base_model": ModelReference(uri="hf://org/any", revision=COMMIT)}, None),
        ("m", {"base_model": ModelReference(uri="hf://other/name", revision=COMMIT)}, None),
        ("m", {"base_model": ModelReference(uri="s3://bucket/bases/one")}, None),
        (
            "m",
            {"base_model": ModelReference(uri="s3://bucket/bases/../models/one")},
            "base_model.uri: 's3://bucket/bases/../models/one' is none of requests.base_models",
        ),
        (
            "m",
            {"base_model": ModelReference(uri="hf://other/name2", revision=COMMIT)},
            "base_model.uri: 'hf://other/name2' is none of requests.base_models",
        ),
        (
            "m",
            {"base_model": ModelReference(uri="hf://org/any", revision="main")},
            "base_model.revision: a hub model needs a full commit hash, so that a request always means one model",
        ),
        (
            "m",
            {"base_model": ModelReference(uri="s3://elsewhere/bases/one")},
            "base_model.uri: must be in the bucket 'bucket'",
        ),
    ],
)
def test_the_coordinator_accepts_what_the_settings_allow_whoever_wrote_it(
    model: str, changes: dict[str, Any], reason: str | None
) -> None:
    async def scenario() -> None:
        system = System(requests=ALLOWED)
        await system.handle(Topic.FINE_TUNE_REQUESTS, model, fine_tune_request("r", model=model, **changes))
        status = last_status(system, "r", model)
        assert status.state is (State.REJECTED if reason else State.SNAPSHOTTING)
        assert status.reasons == ((reason,) if reason else ())

    asyncio.run(scenario())


FIRED_AT = now().replace(microsecond=0) - timedelta(minutes=1)
SCHEDULED = scheduled_request("m", FIRED_AT)
RULES = PolicySettings(rules=(PolicyRule(model="m", new_examples=10, cooldown=timedelta(0)),))
(RULE,) = RULES.rules_of("m")
POLICY_ID = f"auto-{'0' * 20}"


def progress(new_examples: int, **fields: Any) -> TrainingProgressed:
    defaults: dict[str, Any] = {"model": "m", "partition": 0, "rule": RULE.key, "usable": new_examples}
    return TrainingProgressed(new_examples=new_examples, **defaults | fields)


def policy_requests(system: System) -> list[FineTuneRequested]:
    label = Topic.FINE_TUNE_REQUESTS.label
    return [
        FineTuneRequested.model_validate_json(record.value) for record in system.publisher.sent if record.topic == label
    ]


def newest(system: System) -> PolicyDecided:
    """The newest decision, with its figures."""
    records = [record for record in system.publisher.sent if record.key == "m" and "decisions" in record.topic]
    return PolicyDecided.model_validate_json(records[-1].value)


def decisions(system: System) -> list[PolicyDecided]:
    """Each change."""
    label = Topic.POLICY_DECISIONS.label
    return [
        PolicyDecided.model_validate_json(record.value)
        for record in system.publisher.sent
        if record.topic == label and record.key != "m"
    ]


@pytest.mark.parametrize(
    "request_",
    [
        fine_tune_request("auto-1", model="m", origin="policy"),
        fine_tune_request(POLICY_ID, model="m", origin="api"),
        fine_tune_request(POLICY_ID, model="other", origin="policy"),
        fine_tune_request("schedule-m-20260101", model="m", origin="policy"),
        SCHEDULED.model_copy(update={"origin": "api"}),
        SCHEDULED.model_copy(update={"requested_by": "someone"}),
        SCHEDULED.model_copy(update={"base_model": ModelReference(uri="hf://org/any", revision=COMMIT)}),
        SCHEDULED.model_copy(update={"data": DataSelection(agents=("a",))}),
        SCHEDULED.model_copy(update={"requested_at": FIRED_AT - timedelta(days=1)}),
        scheduled_request("m", now() + timedelta(hours=1)),
        scheduled_request("unscheduled", FIRED_AT),
        SCHEDULED.model_copy(update={"model": "m-2"}),
    ],
)
def test_a_reserved_id_is_refused_unless_its_owner_wrote_the_request_and_stays_free(
    request_: FineTuneRequested,
) -> None:
    async def scenario() -> None:
        system = System(policy=RULES, schedule=ScheduleSettings(models=("m",)))
        with pytest.raises(InvalidEventError, match="those of policy and schedule"):
            await system.handle(Topic.FINE_TUNE_REQUESTS, request_.model, request_)
        assert not system.publisher.sent
        # An invalid event is no rejection either.
        invalid = request_.encode().replace(b'"seed":', b'"seed":-1')
        with pytest.raises(ValidationError):
            await system.handle_raw(Topic.FINE_TUNE_REQUESTS, request_.model, invalid)
        assert not system.publisher.sent

    asyncio.run(scenario())


def test_a_request_of_the_schedule_is_taken_from_a_release_with_other_defaults() -> None:
    async def scenario() -> None:
        system = System()
        request = SCHEDULED.model_copy(update={"training": TrainingKnobs(epochs=7), "seed": 1})
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        assert last_status(system, request.request_id, "m").state is State.SNAPSHOTTING

    asyncio.run(scenario())


@pytest.mark.parametrize("models", [(), ("m",)])
def test_a_request_of_the_schedule_is_taken(models: tuple[str, ...]) -> None:
    async def scenario() -> None:
        system = System(schedule=ScheduleSettings(models=models))
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", SCHEDULED)
        assert last_status(system, SCHEDULED.request_id, "m").state is State.SNAPSHOTTING

    asyncio.run(scenario())


def test_a_request_of_the_policy_is_taken_and_no_other_after_it() -> None:
    async def scenario() -> None:
        system = System(policy=RULES, partitions=1)
        await system.handle(Topic.TRAINING_PROGRESS, "m", progress(10))
        (request,) = policy_requests(system)
        other = request.model_copy(update={"request_id": POLICY_ID})
        with pytest.raises(InvalidEventError, match="none of the policy's"):
            await system.handle(Topic.FINE_TUNE_REQUESTS, "m", other)
        for _ in range(2):
            await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        assert system.publisher.states(request.request_id, "m")[-2:] == [State.SNAPSHOTTING] * 2
        # Written before, and read after it.
        before = int(request.requested_at.timestamp() * 1000) - 60_000
        await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", other.encode(), timestamp=before)
        assert last_status(system, POLICY_ID, "m").state is State.WAITING

    asyncio.run(scenario())


def test_each_change_of_a_decision_is_published_with_the_request_and_its_figures_once_a_minute() -> None:
    async def scenario() -> None:
        clock = FakeClock(now())
        system = System(policy=RULES, partitions=1, clock=clock)
        await system.tick()
        await system.handle(Topic.TRAINING_PROGRESS, "m", progress(4))
        assert [event.decision for event in decisions(system)] == ["waiting"]
        assert newest(system).rules[0].conditions[0].figure == 0
        clock.advance(timedelta(minutes=1))
        await system.tick()
        assert newest(system).rules[0].conditions[0].figure == 4
        told = len(system.publisher.sent)
        # What has not changed is not told again.
        clock.advance(timedelta(hours=1))
        await system.tick()
        assert len(system.publisher.sent) == told
        await system.handle(Topic.TRAINING_PROGRESS, "m", progress(10))
        (request,) = policy_requests(system)
        assert decisions(system)[-1].request_id == newest(system).request_id == request.request_id
        for _ in range(2):
            await system.tick()
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        await system.tick()
        assert [event.decision for event in decisions(system)] == ["waiting", "requested", "blocked"]
        assert decisions(system)[-1].rules[0].blocks[0].block == "in_flight"
        assert len(policy_requests(system)) == 1

    asyncio.run(scenario())


def test_a_decision_that_a_crash_interrupts_is_made_once() -> None:
    async def scenario(writes: int) -> tuple[list[str], list[str]]:
        broker, clock = MortalBroker(), FakeClock(now())
        system = System(policy=RULES, partitions=1, clock=clock, broker=broker)
        await system.tick()
        broker.remaining_writes = writes
        with suppress(KilledError):
            await system.handle(Topic.TRAINING_PROGRESS, "m", progress(10))
        broker.remaining_writes = 1 << 30
        successor = System(policy=RULES, partitions=1, clock=clock, broker=broker)
        clock.advance(timedelta(seconds=2))
        for _ in range(3):
            await successor.handle(Topic.TRAINING_PROGRESS, "m", progress(10))
            await successor.tick()
        ids = sorted({request.request_id for request in policy_requests(successor)})
        return ids, sorted({event.decision for event in decisions(successor) if event.request_id})

    for writes in range(12):
        ids, told = asyncio.run(scenario(writes))
        assert (len(ids), told) == (1, ["requested"]), writes


def test_only_a_training_of_the_rules_folders_ends_its_count_and_those_who_count_are_told() -> None:
    async def trained(data: DataSelection) -> tuple[TrainingFinished, float | None]:
        rule = PolicyRule.model_validate({"model": "m", "data": {"folders": ["f"]}, "new_examples": 100})
        clock = FakeClock(now())
        system = System(policy=PolicySettings(rules=(rule,)), partitions=1, clock=clock)
        await system.handle(Topic.TRAINING_PROGRESS, "m", progress(60, rule=rule.rule.key))
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", fine_tune_request("r", model="m", data=data))
        folders = [FolderCount(folder_id=folder, examples=9, documents=1) for folder in data.folders or ()]
        part = SnapshotPart(request_id="r", model="m", partition=0, positives=30, folders=tuple(folders))
        system.hangs = False
        await system.handle(Topic.SNAPSHOT_PARTS, "m", part)
        await system.ticks_until(jobs=1)
        done = FineTuneStatus(request_id="r", model="m", state=State.COMPLETED, at=now())
        await system.handle(Topic.TRAINING_REPORTS, "m", done)
        (record,) = [record for record in system.publisher.sent if "training_finished" in record.value]
        clock.advance(timedelta(minutes=1))
        await system.tick()
        (condition,) = newest(system).rules[0].conditions
        return TrainingFinished.model_validate_json(record.value), condition.figure

    key = Rule.model_validate({"data": {"folders": ["f"]}}).key
    for folders, rules, everything, figure in (
        (None, (key,), True, 0),
        (("f", "g"), (key,), False, 0),
        (("g",), (), False, 60),
    ):
        finished, left = asyncio.run(trained(DataSelection(folders=folders)))
        assert (finished.rules, finished.everything) == (rules, everything)
        assert left == figure


def test_what_people_set_goes_before_the_settings_which_are_published_for_readers() -> None:
    async def scenario() -> None:
        records: list[Any] = []

        async def read(partition: int, first: int) -> AsyncIterator[Any]:
            for record in records[first:]:
                assert partition == 0
                yield record

        held: list[Policies] = []

        def policies(settings: Settings) -> Policies:
            held.append(Policies(settings, read))
            return held[0]

        def published() -> list[RetrainingPolicy]:
            label = Topic.POLICIES.label
            sent = [record for record in system.publisher.sent if record.topic == label]
            return [RetrainingPolicy.model_validate_json(record.value) for record in sent]

        async def appended(value: bytes | None, key: bytes = b"m") -> None:
            records.append(SimpleNamespace(value=value, key=key, partition=0, offset=len(records)))
            await held[0].refresh()

        system = System(policy=RULES, partitions=1, policies=policies)
        await system.tick()
        # Nothing is decided before it is known what people have set.
        assert not system.publisher.sent
        await held[0].refresh()
        for _ in range(3):
            await system.tick()
        (seed,) = published()
        assert (seed.origin, seed.rules) == ("settings", (RULE,))
        await appended(seed.encode())
        await system.tick()
        assert len(published()) == 1

        paused = seed.model_copy(update={"paused": True, "by": "ann"})
        await appended(paused.encode())
        await system.handle(Topic.TRAINING_PROGRESS, "m", progress(10))
        assert decisions(system)[-1].decision == "paused"
        others = RetrainingPolicy(model="m", at=now(), rules=(Rule(name="mine", new_examples=20),))
        await appended(others.encode())
        await system.tick()
        assert decisions(system)[-1].rules[0].conditions[0].bound == 20
        # What cannot be read changes nothing.
        for value in (b"{nope", others.encode().replace(b'"mine"', b'"Mine"'), b"x" * 300_000):
            await appended(value)
            await system.tick()
        assert decisions(system)[-1].rules[0].conditions[0].bound == 20
        # Back to the settings: they are published again.
        await appended(others.model_copy(update={"origin": "settings", "rules": ()}).encode())
        restored = held[0].of("m")
        assert restored
        assert restored.rules == (RULE,)
        await system.tick()
        assert decisions(system)[-1].decision == "requested"

    asyncio.run(scenario())


def test_under_another_app_id_the_policys_requests_under_way_are_taken_again() -> None:
    async def scenario() -> None:
        system = System(policy=RULES)
        written = int(now().timestamp() * 1000) - 60_000
        request = fine_tune_request(POLICY_ID, model="m", origin="policy")
        await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", request.encode(), timestamp=written)
        assert last_status(system, POLICY_ID, "m").state is State.SNAPSHOTTING

    asyncio.run(scenario())


def test_nobody_takes_the_policys_first_id_before_it() -> None:
    async def scenario() -> None:
        system = System(policy=RULES, partitions=1)
        policy = RetrainingPolicy(model="m", at=now(), rules=(RULE,))
        state = retraining_policy.with_progress(PolicyState(), progress(10))
        first = retraining_policy.decide(policy, state, Situation(), now()).request
        assert first
        # Begins the state.
        await system.tick()
        forged = first.model_copy(update={"seed": 1}).encode()
        for written in (-1, 0, int(now().timestamp() * 1000) + 1_000):
            with pytest.raises(InvalidEventError, match="none of the policy's"):
                await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", forged, timestamp=written)
        # Written before, but not of the policy's kind.
        before = int(now().timestamp() * 1000) - 60_000
        based = first.model_copy(update={"base_model": ModelReference(uri="hf://org/any", revision=COMMIT)}).encode()
        with pytest.raises(InvalidEventError, match="none of the policy's"):
            await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", based, timestamp=before)
        await system.handle(Topic.TRAINING_PROGRESS, "m", progress(10))
        (request,) = policy_requests(system)
        assert request.request_id == first.request_id
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        assert last_status(system, first.request_id, "m").state is State.SNAPSHOTTING

    asyncio.run(scenario())


def test_a_state_of_the_previous_form_takes_no_unknown_request_for_the_policys() -> None:
    async def scenario() -> None:
        system = System(policy=RULES)
        # The count of requests that had ended.
        await system.table.write(partition_of("m", PARTITIONS), {b"x|ends": b"3"})
        forged = fine_tune_request(POLICY_ID, model="m", origin="policy").encode()
        with pytest.raises(InvalidEventError, match="none of the policy's"):
            await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", forged, timestamp=int(now().timestamp() * 1000))

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [None, -1, {}, "unknown"])
def test_a_request_of_an_invalid_type_is_answered(kind: object) -> None:
    async def scenario() -> None:
        system = System()
        event = {**json.loads(fine_tune_request("r", model="m").encode()), "type": kind}
        await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", json.dumps(event).encode())
        status = last_status(system, "r")
        assert status.state is State.REJECTED
        assert status.reasons[0].startswith("type: Input should be")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("field", "token", "reason"),
    [
        ("seed", "-1", "seed: Input should be greater than or equal to 0"),
        ("seed", str(2**63), f"seed: Input should be less than or equal to {2**63 - 1}"),
        ("seed", "1e400", "seed: Input should be a valid integer"),
        ("requested_by", f'"{"x" * 257}"', "requested_by: String should have at most 256 characters"),
        ("data", '{"agents":[%s"x"]}' % ('"x",' * 10_000), "data.agents: Input should have at most 10000 items"),
        ("data", '{"folders":[]}', "data.folders: Input should have at least 1 item"),
        ("base_model", '{"uri":"hf://o/n%s"}' % ("n" * 1_200), "base_model.uri: String should have at most 1200 char"),
        ("weights", '{"temperature":NaN}', "weights.temperature: Input should be a finite number"),
        ("training", '{"epochs":101}', "training.epochs: Input should be less than or equal to 100"),
    ],
)
def test_every_field_of_a_request_has_a_bound_which_the_rejection_names(field: str, token: str, reason: str) -> None:
    async def scenario() -> None:
        system = System()
        value = fine_tune_request("r", model="m").encode()[:-1] + f',"{field}":{token}}}'.encode()
        await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", value)
        status = last_status(system, "r")
        assert status.state is State.REJECTED
        assert status.reasons[0].startswith(reason)

    asyncio.run(scenario())


@pytest.mark.parametrize("event", [{}, {"type": "fine_tune_cancelled"}, {"training": "of another meaning"}])
def test_a_request_of_a_later_version_waits_in_the_dead_letters_and_gets_no_end(event: dict[str, Any]) -> None:
    async def scenario() -> None:
        system = System()
        newer = {**json.loads(fine_tune_request("r", model="m").encode()), "schema_version": 2, **event}
        # Whoever handles what comes in sends it to the dead letters.
        with pytest.raises(ValidationError) as refused:
            await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", json.dumps(newer).encode())
        assert kind_of(refused.value) == "unknown_version"
        assert system.publisher.statuses("r", "m") == []

    asyncio.run(scenario())


@pytest.mark.parametrize("token", ["[" * 10_000, "[" * 10_000 + "]" * 10_000, "1" * 5_000, '"\\ud800"'])
def test_json_that_is_too_deep_or_wide_is_no_event(token: str) -> None:
    async def scenario() -> None:
        system = System()
        value = fine_tune_request("r", model="m").encode()[:-1] + f',"x":{token}}}'.encode()
        with pytest.raises(ValidationError, match="Invalid JSON"):
            await system.handle_raw(Topic.FINE_TUNE_REQUESTS, "m", value)

    asyncio.run(scenario())


def test_another_app_id_knows_what_has_ended_and_makes_no_job_of_it() -> None:
    async def scenario() -> None:
        system = System()
        ends = {"done": State.COMPLETED, "bad": State.REJECTED, "gone": State.CANCELLED}
        system.published_before = [
            FineTuneStatus(request_id=name, model="m", state=state, at=now())
            for name, end in ends.items()
            # Of a worker that was cut off: the first end counts.
            for state in (State.SNAPSHOTTING, end, State.FAILED)
        ]
        unreadable: Any = SimpleNamespace(model="m", encode=lambda: b"?")
        system.published_before.insert(1, unreadable)
        for name, end in ends.items():
            await system.handle(Topic.FINE_TUNE_REQUESTS, "m", fine_tune_request(name, model="m"))
            assert system.publisher.states(name, "m") == [end]
        assert {record.topic for record in system.publisher.sent} == {Topic.FINE_TUNE_STATUS.label}

    asyncio.run(scenario())


@pytest.mark.parametrize("another_app_id", [False, True])
def test_a_cancelled_leader_whose_run_was_stopped_later_is_not_said_to_continue(*, another_app_id: bool) -> None:
    async def scenario() -> None:
        system = System(partitions=1)
        leader, follower = (fine_tune_request(name, model="m") for name in ("a", "b"))
        # Those that wait beside each other, behind another training, share one.
        for request in (fine_tune_request("first", model="m", seed=1), leader, follower):
            await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        for name in ("first", "a", "b"):
            cancel = FineTuneCancelled(request_id=name, model="m", requested_at=now())
            await system.handle(Topic.FINE_TUNE_REQUESTS, "m", cancel)
        ends = [status for status in system.publisher.statuses("a", "m") if status.state.terminal]
        assert [status.run_continues for status in ends] == [True, None]
        if another_app_id:
            system = System(partitions=1)
            system.published_before = ends
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", leader)
        answer = last_status(system, "a", "m")
        assert (answer.state, answer.run_continues) == (State.CANCELLED, None)

    asyncio.run(scenario())


def test_another_app_id_takes_what_has_not_ended_from_the_beginning() -> None:
    async def scenario() -> None:
        system = System()
        system.published_before = [FineTuneStatus(request_id="r", model="m", state=State.RUNNING, at=now())]
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", fine_tune_request("r", model="m"))
        assert system.publisher.states("r", "m") == [State.ACCEPTED, State.SNAPSHOTTING]

    asyncio.run(scenario())


def test_a_request_is_taken_again_where_the_brokers_did_not_tell_what_has_ended() -> None:
    async def scenario() -> None:
        system = System()
        end = FineTuneStatus(request_id="r", model="m", state=State.COMPLETED, at=now())
        system.published_before = [end]
        request = fine_tune_request("r", model="m")
        # Before the first record, and after it.
        for system.silent_after in (0, 1):
            with pytest.raises(KafkaTimeoutError) as caught:
                await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
            # So the consumer waits, and repeats the record.
            assert brokers_at_fault(caught.value)
            assert not is_at_fault(caught.value)
        assert not system.publisher.sent
        system.silent_after = None
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)
        assert system.publisher.states("r", "m") == [State.COMPLETED]
        # Read once.
        system.silent_after = 0
        await system.handle(Topic.FINE_TUNE_REQUESTS, "m", request)

    asyncio.run(scenario())


def test_an_old_request_that_nobody_knows_is_rejected() -> None:
    async def scenario() -> None:
        system = System()
        old = int((now() - timedelta(days=8)).timestamp() * 1000)
        for name, written in (("old", old), ("new", old + 2 * 86_400_000), ("unknown", -1)):
            request = fine_tune_request(name, model=name)
            await system.handle_raw(Topic.FINE_TUNE_REQUESTS, name, request.encode(), written)
        assert system.publisher.states("old") == [State.REJECTED]
        for name in ("new", "unknown"):
            assert system.publisher.states(name) == [State.ACCEPTED, State.SNAPSHOTTING]

    asyncio.run(scenario())


def test_the_manifest_of_another_snapshot_is_not_overwritten() -> None:
    async def scenario() -> None:
        system = System()
        system.hangs = False
        key = snapshot_manifest_key("m", "m")
        system.manifests[key] = b"of another system"
        await system.request_with_snapshot("m")
        await system.ticks_until(jobs=1)
        assert system.manifests.pop(key) == b"of another system"
        ((second, content),) = system.manifests.items()
        (value,) = [record.value for record in system.publisher.sent if record.topic == Topic.TRAINING_JOBS.label]
        job = TrainingJob.model_validate_json(value)
        assert job.snapshot_uri == f"s3://bucket/{second}"
        assert job.snapshot_sha256 == hashlib.sha256(content).hexdigest()

    asyncio.run(scenario())
