"""A job that meets a defect ends, and neither the launcher nor its other jobs do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from kafka.errors import KafkaError, MetadataEmptyBrokerList
from kafka.structs import TopicPartition

from foldtune.dead_letters import ERROR_HEADER
from foldtune.errors import ObjectStoreError, PublishError
from foldtune.events import State
from foldtune.in_flight import InFlightOffsets
from foldtune.settings import Settings
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic
from launchers import job_consumer
from launchers.job_consumer import JobConsumer
from launchers.local.launcher import GRACE_SECONDS
from launchers.port import Run
from tests.fakes.launcher import FakeLauncher

from .conftest import make_job

PARTITION = TopicPartition("training-jobs", 0)


class BrokenLauncher(FakeLauncher):
    def submit(self, run: Run) -> None:
        if run.job.request.request_id == "bad":
            raise KeyError("instance type")
        super().submit(run)


class Published:
    """What the launcher publishes, unless the brokers are gone."""

    def __init__(self) -> None:
        self.letters: list[dict[str, bytes]] = []
        self.statuses: list[dict[str, Any]] = []
        self.gone = False

    def send_raw(self, topic: Topic, value: bytes, *, key: bytes | None, headers: Any) -> None:
        if self.gone:
            raise PublishError("dead-letters", "no broker")
        assert (topic, key, json.loads(value)["type"]) == (Topic.DEAD_LETTERS, b"k", "training_job")
        self.letters.append(dict(headers))

    def publish(self, topic: Topic, event: Any, **_: object) -> None:
        assert topic is Topic.TRAINING_REPORTS
        self.statuses.append(json.loads(event.encode()))

    def flush(self) -> None:
        pass


def test_a_launcher_waits_for_its_trainers_checkpoints_and_ends_within_a_clusters_grace() -> None:
    assert GRACE_SECONDS < job_consumer.STOP_SECONDS < job_consumer.END_SECONDS < 30


def test_a_claim_that_cannot_be_given_back_keeps_no_other_run_from_its_interruption(store: MemoryObjectStore) -> None:
    consumer: Any = JobConsumer(Settings(), store, FakeLauncher(), parallel=2)
    executions = [mock.Mock(running=False) for _ in range(2)]
    executions[0].interrupt.side_effect = ObjectStoreError("s3")
    consumer._executions = dict(enumerate(executions))
    consumer._stop()
    executions[1].interrupt.assert_called_once()


def test_a_job_starts_only_once_all_ends_that_were_published_are_read() -> None:
    ended: Any = mock.Mock(state=lambda *_: State.CANCELLED if ended.catch_up.called else None)
    assert job_consumer._caught_up_and_ended(ended, make_job("r"))


def test_a_job_that_meets_a_defect_is_a_dead_letter_and_a_failed_request(store: MemoryObjectStore) -> None:
    published, ended = Published(), mock.Mock(**{"state.return_value": None})
    consumer: Any = JobConsumer(Settings(), store, BrokenLauncher(), parallel=2)
    consumer._offsets[PARTITION] = offsets = InFlightOffsets()
    for offset, name in enumerate(("bad", "good")):
        offsets.start(offset)
        record = SimpleNamespace(
            topic="training-jobs", partition=0, offset=offset, key=b"k", value=make_job(name).encode()
        )
        consumer._accept(PARTITION, record, ended, published)
    published.gone = True
    consumer._advance(ended, published)
    assert offsets.committable() is None
    published.gone = False
    for _ in range(3):
        consumer._advance(ended, published)
    assert offsets.committable() == 2
    [letter] = published.letters
    assert letter[ERROR_HEADER] == b"KeyError: 'instance type'"
    failed = [status for status in published.statuses if status["state"] == State.FAILED]
    assert [(status["request_id"], status["reasons"]) for status in failed] == [("bad", ["KeyError: 'instance type'"])]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_no_job_ends_for_what_the_machine_is_at_fault_for(store: MemoryObjectStore, error: Exception) -> None:
    launcher, published, ended = FakeLauncher(), Published(), mock.Mock(**{"state.return_value": None})
    consumer: Any = JobConsumer(Settings(), store, launcher)
    consumer._offsets[PARTITION] = offsets = InFlightOffsets()
    offsets.start(0)
    record = SimpleNamespace(topic="training-jobs", partition=0, offset=0, key=b"k", value=make_job("r").encode())
    consumer._accept(PARTITION, record, ended, published)
    with mock.patch.object(launcher, "submit", side_effect=error), pytest.raises(type(error)):
        consumer._advance(ended, published)
    assert published.letters == []


class OneRecord:
    """A consumer's poll, seek and pausing, for a partition with one record."""

    def __init__(self, record: SimpleNamespace) -> None:
        self._record = record
        self._position = 0

    def assignment(self) -> set[TopicPartition]:
        return {PARTITION}

    def pause(self, *partitions: TopicPartition) -> None:
        pass

    resume = pause

    def poll(self, **_: object) -> dict[TopicPartition, list[SimpleNamespace]]:
        position, self._position = self._position, 1
        return {PARTITION: [self._record]} if position == 0 else {}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        assert partition == PARTITION
        self._position = offset


def test_an_event_whose_dead_letter_cannot_be_written_is_read_again(store: MemoryObjectStore) -> None:
    published = mock.Mock(**{"send_raw.side_effect": PublishError("dead-letters", "no broker")})
    consumer: Any = JobConsumer(Settings(), store, FakeLauncher())
    record = SimpleNamespace(topic="training-jobs", partition=0, offset=0, key=b"k", value=b"{", headers=())
    jobs = OneRecord(record)
    with pytest.raises(PublishError):
        consumer._receive(jobs, mock.Mock(), published)
    published.send_raw.side_effect = None
    consumer._receive(jobs, mock.Mock(), published)
    assert published.send_raw.call_count == 2
    assert consumer._offsets[PARTITION].committable() == 1


def test_a_launcher_outlasts_brokers_that_do_not_answer(store: MemoryObjectStore) -> None:
    consumer: Any = JobConsumer(Settings(), store, FakeLauncher())
    stop = threading.Event()
    jobs = mock.Mock(**{"assignment.return_value": set(), "poll.side_effect": [KafkaError("fenced"), {}]})
    ended = mock.Mock(**{"refresh.side_effect": stop.set})
    connections = [MetadataEmptyBrokerList("no broker"), PublishError("t", "no broker"), (jobs, ended, mock.Mock())]
    with (
        mock.patch.object(job_consumer, "RETRY_SECONDS", 0),
        mock.patch.object(consumer, "_connected", side_effect=map(connection, connections)),
    ):
        consumer.run(stop)
    assert jobs.poll.call_count == 2


@contextmanager
def connection(outcome: Any) -> Iterator[Any]:
    """One attempt to connect: an error, or the clients."""
    if isinstance(outcome, Exception):
        raise outcome
    yield outcome
