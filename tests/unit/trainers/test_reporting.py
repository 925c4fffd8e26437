"""Brokers that do not answer hold up no training, and its end is sent once they do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from foldtune.errors import NoBrokerError, PublishError
from foldtune.events import FineTuneStatus, State, now
from foldtune.kafka import Publisher
from foldtune.topics import Topic
from trainers.errors import InfrastructureFailedError
from trainers.publishing import reporting
from trainers.publishing.reporting import KafkaEventSink


class Brokers:
    """What the sink connects to: refuses connections, fails events, and answers nothing until ``answers``."""

    def __init__(self) -> None:
        self.refused = self.failed = 0
        self.answers = threading.Event()
        self.answers.set()
        self.attempts = threading.Semaphore(0)
        self.events: list[Any] = []

    @contextmanager
    def connect(self) -> Iterator[Publisher]:
        if self.refused:
            self.refused -= 1
            self.attempts.release()
            raise NoBrokerError("127.0.0.1:9092")
        yield cast(Publisher, self)

    def publish(self, topic: Topic, event: Any, **_: object) -> None:
        self.attempts.release()
        assert self.answers.wait(10)
        if self.failed:
            self.failed -= 1
            raise PublishError(topic.value, "no acknowledgement")
        self.events.append(event)


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brokers]:
    monkeypatch.setattr(reporting, "MAX_WAIT_SECONDS", 0.001)
    brokers = Brokers()
    yield brokers
    brokers.answers.set()


def status(state: State, warning: str = "") -> FineTuneStatus:
    return FineTuneStatus(request_id="r", model="m", state=state, at=now(), warnings=(warning,))


def test_reports_on_the_way_are_not_waited_for_and_the_newest_is_sent(brokers: Brokers) -> None:
    first, older, newest = (status(State.RUNNING, name) for name in ("first", "older", "newest"))
    brokers.answers.clear()
    with KafkaEventSink(brokers.connect) as sink:
        sink.publish_status(first)
        assert brokers.attempts.acquire(timeout=10)
        # The brokers hang: both calls return nevertheless.
        sink.publish_status(older)
        sink.publish_status(newest)
        brokers.answers.set()
    assert brokers.events == [first, newest]


def test_a_report_that_fails_does_not_fail_the_training(brokers: Brokers) -> None:
    brokers.refused, brokers.failed = 1, 1
    reports = [status(State.RUNNING, str(number)) for number in range(3)]
    with KafkaEventSink(brokers.connect) as sink:
        for report in reports:
            sink.publish_status(report)
            assert brokers.attempts.acquire(timeout=10)
    assert brokers.events == reports[-1:]


def test_the_end_is_repeated_until_it_is_acknowledged_and_replaces_what_was_not_sent(brokers: Brokers) -> None:
    brokers.refused, brokers.failed = 2, 2
    end = status(State.COMPLETED)
    with KafkaEventSink(brokers.connect) as sink:
        sink.publish_status(end)
        assert brokers.events == [end]


def test_an_end_that_is_not_acknowledged_in_time_is_an_error(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "PATIENCE_SECONDS", 0.05)
    brokers.refused = 1_000_000
    with (
        KafkaEventSink(brokers.connect) as sink,
        pytest.raises(InfrastructureFailedError, match="No Kafka broker answers"),
    ):
        sink.publish_status(status(State.FAILED))


def test_a_sink_whose_brokers_hang_is_closed_in_bounded_time(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "CLOSE_SECONDS", 0.05)
    brokers.answers.clear()
    with KafkaEventSink(brokers.connect) as sink:
        sink.publish_status(status(State.RUNNING))
    assert brokers.events == []
