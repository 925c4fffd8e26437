"""Reading a topic while the brokers do not answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from kafka import KafkaConsumer, TopicPartition

from foldtune import topic_reader
from foldtune.errors import NoBrokerError
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic

PARTITION = TopicPartition("chat-logs", 0)


class Clock:
    """Each poll takes a second."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(topic_reader, "time", clock)
    return clock


def reading(monkeypatch: pytest.MonkeyPatch, clock: Clock, polls: list[str], **options: Any) -> Iterator[Any]:
    """Of a topic with as many records as ``polls`` is long; an empty one is a poll that brings nothing."""
    client = mock.create_autospec(KafkaConsumer, instance=True)
    client.partitions_for_topic.return_value = {0}
    client.end_offsets.return_value = {PARTITION: len(polls)}
    records = iter(polls)
    client.read = 0

    def poll(timeout_ms: int) -> dict[TopicPartition, list[str]]:
        assert timeout_ms < 1_000
        clock.seconds += 1
        if not (record := next(records, "")):
            return {}
        client.read += 1
        return {PARTITION: [record]}

    client.poll.side_effect = poll
    client.position.side_effect = lambda *_, **__: client.read or None

    @contextmanager
    def consumer(*_: Any) -> Iterator[Any]:
        yield client

    monkeypatch.setattr(topic_reader, "consumer", consumer)
    return topic_reader.read(KafkaSettings(), Topic.CHAT_LOGS, **options)


def test_a_read_to_the_end_fails_where_the_brokers_fall_silent(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    records = reading(monkeypatch, clock, ["a", *[""] * 29, "b", ""])
    assert [next(records), next(records)] == ["a", "b"]
    # Of the caller.
    clock.seconds += 1_000
    with pytest.raises(NoBrokerError):
        next(records)
    assert clock.seconds == pytest.approx(1_031 + topic_reader.SILENCE_SECONDS, abs=1)


def test_a_reader_that_follows_waits_until_its_deadline(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    assert list(reading(monkeypatch, clock, ["a"], follow=True, deadline=500.0)) == ["a"]
    assert clock.seconds == 501
