"""Fakes of the object store, AWS Batch and the publisher for the handlers."""

from collections.abc import Iterator
from typing import Any

import pytest

import infra.aws.handlers
import launchers.batch.launcher as batch_launcher
from foldtune.events import Event, FineTuneStatus
from foldtune.kafka import Publisher
from foldtune.settings import KafkaSettings, load_settings
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic
from tests.batch_service import BatchService
from tests.lambda_payloads import Context


class Published(Publisher):
    """A publisher that records messages; with ``broken`` set, raises it instead of an acknowledgement."""

    def __init__(self) -> None:
        self.messages: list[tuple[Topic, Any, dict[str, Any]]] = []
        self.broken: Exception | None = None
        self.connected = self.flushed = 0

    def __call__(self, settings: KafkaSettings, delivery_seconds: int) -> "Published":
        self.connected += 1
        self.settings = settings
        self.delivery_seconds = delivery_seconds
        return self

    def send(self, topic: Topic, event: Event, *, key: str, partition_by: str | None = None) -> None:
        self.messages.append((topic, event, {"key": key, "partition_by": partition_by}))

    def publish(self, topic: Topic, event: Event, *, key: str, partition_by: str | None = None) -> None:
        if self.broken:
            raise self.broken
        self.messages.append((topic, event, {"key": key, "partition_by": partition_by}))

    def send_raw(self, topic: Topic, value: bytes | None, **more: Any) -> None:
        if self.broken:
            raise self.broken
        self.messages.append((topic, value, more))

    def flush(self) -> None:
        self.flushed += 1
        if self.broken:
            raise self.broken

    def close(self) -> None:
        """Nothing is open."""

    def on(self, topic: Topic) -> list[Any]:
        return [event for sent_to, event, _ in self.messages if sent_to is topic]

    @property
    def reports(self) -> list[FineTuneStatus]:
        return self.on(Topic.TRAINING_REPORTS)


@pytest.fixture
def context() -> Context:
    """An invocation with two minutes left."""
    return Context(120)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryObjectStore:
    """The handlers' bucket."""
    store = MemoryObjectStore()
    monkeypatch.setattr(infra.aws.handlers, "S3ObjectStore", lambda _: store)
    return store


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> BatchService:
    """The handlers' AWS Batch."""
    service = BatchService()
    monkeypatch.setattr(batch_launcher, "batch_client", lambda _: service)
    return service


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    """The handlers' publisher."""
    publisher = Published()
    monkeypatch.setattr(infra.aws.handlers, "Publisher", publisher)
    return publisher


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, store: MemoryObjectStore) -> Iterator[None]:
    """Settings from the environment alone, with a topic prefix, and no pauses."""
    monkeypatch.setenv("FOLDTUNE_KAFKA__TOPIC_PREFIX", "x-")
    monkeypatch.setenv("FOLDTUNE_SCHEDULE__MODELS", '["support", "sales"]')
    monkeypatch.setattr(infra.aws.handlers, "PAUSE_SECONDS", 0.0)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()
