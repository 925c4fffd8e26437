"""Errors of the publisher."""

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from foldtune import kafka
from foldtune.errors import (
    BrokerRefusesError,
    InvalidSettingsError,
    NoBrokerError,
    PartitionCountError,
    PublishError,
    RecordRefusedError,
)
from foldtune.events import ErasureRequested, now
from foldtune.settings import KafkaSettings
from foldtune.topics import CHANGELOG_CONFIG, Topic

EVENT = ErasureRequested(erasure_id="e", occurred_at=now(), subject="user", subject_id="u")


class Unresponsive:
    """A producer whose brokers have stopped responding."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self._metadata = SimpleNamespace(config={})

    def partitions_for(self, *_: object) -> set[int]:
        raise KafkaTimeoutError("no metadata")

    def send(self, *_: object, **__: object) -> "Unresponsive":
        return self

    def get(self, **_: object) -> None:
        raise KafkaTimeoutError("no acknowledgement")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda publisher: publisher.broadcast(Topic.ERASURES, EVENT), "no metadata"),
        (lambda publisher: publisher.send(Topic.ERASURES, EVENT, key="k", partition_by="m"), "no metadata"),
        (lambda publisher: publisher.publish(Topic.ERASURES, EVENT, key="k"), "no acknowledgement"),
    ],
)
def test_a_failed_publication_names_topic_and_reason(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[kafka.Publisher], None], reason: str
) -> None:
    monkeypatch.setattr(kafka, "KafkaProducer", Unresponsive)
    publisher = kafka.Publisher(KafkaSettings(topic_prefix="p-"))
    with pytest.raises(PublishError, match=rf"p-erasures, KafkaTimeoutError: {reason}"):
        call(publisher)


def test_a_record_that_the_brokers_do_not_take_is_told_from_one_that_may_succeed_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = [MessageSizeTooLargeError(), MessageSizeTooLargeError(), KafkaTimeoutError()]

    class Refusing(Unresponsive):
        def get(self, **_: object) -> None:
            raise errors.pop(0)

    monkeypatch.setattr(kafka, "KafkaProducer", Refusing)
    publisher = kafka.Publisher(KafkaSettings())
    with pytest.raises(RecordRefusedError, match="1 of 1 messages"):
        publisher.publish(Topic.ERASURES, EVENT, key="k")
    publisher.send(Topic.ERASURES, EVENT, key="k")
    with pytest.raises(PublishError, match="2 of 2 messages") as raised:
        publisher.publish(Topic.ERASURES, EVENT, key="k")
    assert not isinstance(raised.value, RecordRefusedError)


def test_the_brokers_are_to_stamp_every_topic_and_changelog() -> None:
    for config in (*(topic.config for topic in Topic), CHANGELOG_CONFIG):
        assert config["message.timestamp.type"] == "LogAppendTime"


def test_a_missing_broker_is_named_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise KafkaTimeoutError

    monkeypatch.setattr(kafka, "KafkaProducer", refuse)
    with pytest.raises(NoBrokerError, match=r"127\.0\.0\.1:1"):
        kafka.Publisher(KafkaSettings(bootstrap_servers="127.0.0.1:1"))


@pytest.mark.parametrize("field", ["ssl_cafile", "ssl_certfile"])
def test_a_file_that_is_no_certificate_is_refused_by_its_setting(field: str, tmp_path: Path) -> None:
    (tmp_path / "file.pem").write_text("nothing")
    settings = KafkaSettings.model_validate({"security_protocol": "SSL", field: tmp_path / "file.pem"})
    with pytest.raises(InvalidSettingsError, match=rf"kafka\.{field} .*file\.pem"):
        kafka.client_options(settings)


def test_nothing_is_sent_to_a_topic_whose_partitions_are_not_those_that_workers_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Grown(Unresponsive):
        def partitions_for(self, *_: object) -> set[int]:
            return set(range(8))

    monkeypatch.setattr(kafka, "KafkaProducer", Grown)
    publisher = kafka.Publisher(KafkaSettings(partitions=4))
    calls: tuple[Callable[[], object], ...] = (
        lambda: publisher.send(Topic.CHAT_LOGS, EVENT, key="k"),
        lambda: publisher.send(Topic.CHAT_LOGS, EVENT, key="k", partition_by="p"),
        lambda: publisher.broadcast(Topic.CHAT_LOGS, EVENT),
    )
    for call in calls:
        with pytest.raises(PartitionCountError, match="chat-logs, 8, 4"):
            call()
    assert not publisher._pending
    # An agent that was not told the number sends to those that there are.
    for settings in (KafkaSettings(partitions=8), KafkaSettings()):
        publisher = kafka.Publisher(settings)
        publisher.send(Topic.CHAT_LOGS, EVENT, key="k")
        publisher.broadcast(Topic.CHAT_LOGS, EVENT)
        assert len(publisher._pending) == 9


def test_brokers_that_listen_and_let_nobody_in_are_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(**options: Any) -> None:
        raise KafkaTimeoutError

    monkeypatch.setattr(kafka, "KafkaProducer", time_out)
    with socket.create_server(("127.0.0.1", 0)) as server:
        servers = f"127.0.0.1:1,127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BrokerRefusesError, match="let this client not in"):
            kafka.Publisher(KafkaSettings(bootstrap_servers=servers))
    with pytest.raises(NoBrokerError, match="No Kafka broker answers"):
        kafka.Publisher(KafkaSettings(bootstrap_servers=servers))
