"""The coordinator over a table in memory: what it does where the object store or its events fail."""

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest import mock

from botocore.exceptions import EndpointConnectionError

from infra.kafka import partition_of
from infra.objects import ObjectStore
from infra.settings import KafkaSettings, Settings, WorkerSettings
from streams.coordination import Output
from streams.durable_table import MemoryTable
from streams.events import Event, FineTuneStatus, FolderCount, SnapshotPart, State
from streams.outbox import Message, Outbox, messages
from streams.requests import Coordinator
from streams.topics import Topic
from tests.support import fine_tune_request

PARTITIONS = 2


class Recorded(Outbox):
    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def publish(self, outputs: tuple[Output, ...], partition: int) -> None:
        await self.send(tuple(messages(outputs, partition)))

    async def send(self, messages: tuple[Message, ...]) -> None:
        self.sent += messages

    async def dead_letter(
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


def test_while_the_store_refuses_one_models_manifest_other_models_go_on() -> None:
    store: Any = mock.create_autospec(ObjectStore, instance=True, bucket="bucket")
    store.uri.side_effect = lambda key: f"s3://bucket/{key}"
    outbox = Recorded()
    settings = Settings(kafka=KafkaSettings(partitions=PARTITIONS), worker=WorkerSettings(min_examples=1))
    coordinator = Coordinator(MemoryTable(), outbox, store, settings)

    def take(topic: Topic, model: str, event: Event) -> None:
        message = SimpleNamespace(value=event.encode(), topic=topic.label, partition=0, offset=0, key=None)
        asyncio.run(coordinator.take(topic, partition_of(model, PARTITIONS), [message]))

    def request_with_snapshot(name: str) -> None:
        take(Topic.FINE_TUNE_REQUESTS, name, fine_tune_request(name, model=name))
        for partition in range(PARTITIONS):
            folders = (FolderCount(folder_id=f"f{partition}", examples=30, documents=10),)
            part = SnapshotPart(request_id=name, model=name, partition=partition, folders=folders)
            take(Topic.SNAPSHOT_PARTS, name, part)

    store.put.side_effect = EndpointConnectionError(endpoint_url="https://s3")
    request_with_snapshot("first")
    assert outbox.jobs() == 0
    store.put.side_effect = None
    request_with_snapshot("second")
    assert outbox.jobs() == 1
    asyncio.run(coordinator.tick(partition_of("first", PARTITIONS)))
    asyncio.run(coordinator.tick(partition_of("first", PARTITIONS)))
    assert outbox.jobs() == 2
    assert outbox.states("first") == [State.ACCEPTED, State.SNAPSHOTTING]
