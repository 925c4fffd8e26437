"""What was taken is sent until it is acknowledged; what cannot be is named."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.future import Future

from foldtune.client import send_buffer
from foldtune.client.log_batcher import LogBatcher
from foldtune.client.send_buffer import Message, SendBuffer
from foldtune.errors import BufferFullError, ClientClosedError, NoBrokerError, PublishError
from foldtune.topics import Topic
from tests.unit.foldtune.client.test_log_batcher import chat_log


class Broker:
    """Has the calls of a publisher. Each flush ends with the next of ``outcomes``, by value or for all; then well."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.reachable = True
        self.outcomes: list[dict[bytes, KafkaError] | KafkaError] = []
        self.stored: list[bytes] = []
        self._sent: list[tuple[bytes, Any]] = []

    def connect(self) -> Any:
        if not self.reachable:
            raise NoBrokerError("127.0.0.1:1")
        return self

    def send_raw(self, _topic: Topic, value: bytes, *, key: str) -> Any:  # noqa: ARG002
        self._sent.append((value, Future()))
        return self._sent[-1][1]

    def broadcast_raw(self, topic: Topic, value: bytes) -> list[Any]:
        return [self.send_raw(topic, value, key="") for _ in range(2)]

    def flush(self) -> None:
        sent, self._sent = self._sent, []
        answered = self.answers.wait(10)
        outcome = self.outcomes.pop(0) if self.outcomes else {}
        for value, future in sent:
            error = outcome if isinstance(outcome, KafkaError) else outcome.get(value)
            if error or not answered:
                future.failure(error or KafkaTimeoutError())
            else:
                self.stored.append(value)
                future.success(None)

    def abort(self) -> None:
        self.answers.set()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def make(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SendBuffer]]:
    monkeypatch.setattr(send_buffer, "_BACKOFF", (0.001, 0.001))
    made: list[SendBuffer] = []

    def buffer(linger: float = 60, block: float = 0, delivery: float = 5, max_bytes: int = 10_000) -> SendBuffer:
        batcher = LogBatcher(count=100, max_bytes=100_000, linger=linger)
        made.append(SendBuffer(broker.connect, batcher, max_bytes=max_bytes, block=block, delivery=delivery))
        return made[-1]

    yield buffer
    broker.answers.set()
    for each in made:
        each.close()


def message(name: str, key: str | None = "f", size: int = 0) -> Message:
    """A document's message."""
    return Message(Topic.DOCUMENTS, name.encode(), (name,), key=key, size=size)


def test_logs_are_sent_after_the_linger(make: Callable[..., SendBuffer], broker: Broker) -> None:
    buffer = make(linger=0.001)
    buffer.add_log(chat_log(1))
    buffer.flush()
    assert [b"l-1" in value for value in broker.stored] == [True]


def test_close_sends_what_lingers(make: Callable[..., SendBuffer], broker: Broker) -> None:
    buffer = make()
    buffer.add_log(chat_log(1))
    buffer.close()
    assert len(broker.stored) == 1
    with pytest.raises(ClientClosedError):
        buffer.add_log(chat_log(2))


def test_what_was_not_acknowledged_is_sent_again(make: Callable[..., SendBuffer], broker: Broker) -> None:
    broker.outcomes = [KafkaTimeoutError(), KafkaTimeoutError()]
    buffer = make()
    buffer.put(message("d1"))
    buffer.flush()
    assert broker.stored == [b"d1"]


def test_what_follows_an_event_that_is_sent_again_follows_it_once_more(
    make: Callable[..., SendBuffer], broker: Broker
) -> None:
    broker.answers.clear()
    buffer = make()
    buffer.put(message("first window", key="x"))
    for name, key in (("d1", "f"), ("d2", "f"), ("d3", "g")):
        buffer.put(message(name, key=key))
    broker.outcomes = [{b"d1": KafkaTimeoutError()}, {b"d1": KafkaTimeoutError()}]
    broker.answers.set()
    buffer.flush()
    # The last of each key in the order in which they were taken.
    assert [value for value in broker.stored if value in {b"d1", b"d2"}][-2:] == [b"d1", b"d2"]
    assert broker.stored.count(b"d3") == 1


def test_a_refused_event_is_named_at_the_next_call_and_the_others_arrive(
    make: Callable[..., SendBuffer], broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.outcomes = [{b"d1": MessageSizeTooLargeError()}] * 2
    buffer = make()
    buffer.put(message("d1"))
    buffer.put(message("d2"))
    with pytest.raises(PublishError, match=r"documents, .*MessageSizeTooLargeError.*lost: 1 \(d1\)"):
        buffer.flush()
    assert "events lost" in caplog.text
    assert "1 (d1)" in caplog.text
    buffer.flush()
    assert broker.stored == [b"d2"]


def test_a_defect_does_not_end_the_thread(
    make: Callable[..., SendBuffer], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = make()
    with monkeypatch.context() as patch:
        patch.setattr(broker, "flush", lambda: 1 / 0)
        buffer.put(message("d1"))
        with pytest.raises(PublishError, match=r"division by zero.*lost: 1 \(d1\)"):
            buffer.flush()
    buffer.put(message("d2"))
    buffer.flush()
    assert broker.stored[-1] == b"d2"


def test_a_full_buffer_takes_no_event_and_says_so_at_once(make: Callable[..., SendBuffer], broker: Broker) -> None:
    broker.answers.clear()
    buffer = make(max_bytes=10)
    buffer.put(message("d1", size=6))
    began = time.monotonic()
    with pytest.raises(BufferFullError, match="6 bytes are not acknowledged yet, at most 10"):
        buffer.put(message("d2", size=6))
    assert time.monotonic() - began < 1
    broker.answers.set()
    buffer.flush()
    assert broker.stored == [b"d1"]


def test_an_event_waits_for_room(make: Callable[..., SendBuffer], broker: Broker) -> None:
    broker.answers.clear()
    buffer = make(max_bytes=10, block=5)
    buffer.put(message("d1", size=6))
    threading.Timer(0.05, broker.answers.set).start()
    buffer.put(message("d2", size=6))
    buffer.flush()
    assert broker.stored == [b"d1", b"d2"]


def test_flush_names_what_is_missing_and_keeps_it(make: Callable[..., SendBuffer], broker: Broker) -> None:
    broker.answers.clear()
    buffer = make(delivery=0.05)
    for number in range(12):
        buffer.put(message(f"d{number}"))
    with pytest.raises(PublishError, match=r"not acknowledged yet, and sent again: 12 \(d0, .*, d9 and 2 more\)"):
        buffer.flush()
    broker.answers.set()
    buffer.flush()
    assert len(set(broker.stored)) == 12


@pytest.mark.slow
def test_flush_waits_while_anything_is_acknowledged(make: Callable[..., SendBuffer], broker: Broker) -> None:
    buffer, answer = make(delivery=1), broker.flush

    def answer_slowly() -> None:
        time.sleep(0.2)
        answer()
        if broker.outcomes:
            # For the next round to acknowledge.
            buffer.put(message("other", key="g"))

    broker.flush = answer_slowly  # type: ignore[method-assign]
    broker.outcomes = [{b"last": KafkaTimeoutError()} for _ in range(7)]
    buffer.put(message("other", key="g"))
    buffer.put(message("last"))
    buffer.flush()
    assert b"last" in broker.stored


def test_close_names_what_is_lost(
    make: Callable[..., SendBuffer], broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.answers.clear()
    buffer = make(delivery=0.05)
    buffer.add_log(chat_log(1))
    with pytest.raises(PublishError, match=r"chat-logs, no answer within 0\.05 s, lost: 1 \(l-1\)"):
        buffer.close()
    assert "not acknowledged, and lost: 1 (l-1)" in caplog.text


def test_an_event_that_is_waited_for_is_not_sent_after_its_error(
    make: Callable[..., SendBuffer], broker: Broker
) -> None:
    broker.outcomes = [KafkaTimeoutError("no answer")]
    buffer = make()
    with pytest.raises(PublishError, match="documents, KafkaTimeoutError: no answer"):
        buffer.publish(message("d1"))
    buffer.publish(message("d2", key=None))
    assert broker.stored == [b"d2", b"d2"]


def test_each_thread_that_waits_for_a_refused_event_is_told(make: Callable[..., SendBuffer], broker: Broker) -> None:
    broker.answers.clear()
    broker.outcomes = [MessageSizeTooLargeError()]
    buffer = make()
    buffer.put(message("large"))
    errors: list[str] = []

    def flush() -> None:
        try:
            buffer.flush()
        except PublishError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=flush) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 5
    while len(cast(Any, buffer._changed)._waiters) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    broker.answers.set()
    for thread in threads:
        thread.join(10)
    assert [error.endswith("lost: 1 (large)") for error in errors] == [True, True]


def test_a_topic_that_brokers_do_not_tell_of_is_asked_for_once_in_each_attempt(
    make: Callable[..., SendBuffer], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    answer = broker.send_raw

    def ask(topic: Topic, value: bytes, *, key: str) -> Any:
        asked.append(value)
        if len(asked) == 1:
            raise KafkaTimeoutError
        return answer(topic, value, key=key)

    monkeypatch.setattr(broker, "send_raw", ask)
    # So that all three are in the first attempt.
    broker.reachable = False
    buffer = make()
    for number in range(3):
        buffer.put(message(f"{number}", key=f"{number}"))
    broker.reachable = True
    buffer.flush()
    assert len(set(broker.stored)) == 3
    assert asked == [b"0", b"0", b"1", b"2"]


def test_threads_that_wait_for_a_silent_broker_do_not_wait_for_each_other(
    make: Callable[..., SendBuffer], broker: Broker
) -> None:
    broker.answers.clear()
    buffer = make(delivery=0.1)
    errors: list[Exception] = []

    def publish(number: int) -> None:
        try:
            buffer.publish(message(f"d{number}"))
        except PublishError as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 8
    assert time.monotonic() - began < 0.6


def test_without_a_broker_events_are_taken_at_once_and_what_waits_is_told_after_one_attempt(
    make: Callable[..., SendBuffer], broker: Broker
) -> None:
    broker.reachable = False
    buffer = make(delivery=60)
    buffer.put(message("d1"))
    with pytest.raises(PublishError, match=r"No Kafka broker answers .* sent again: 1 \(d1\)"):
        buffer.flush()
    with pytest.raises(NoBrokerError):
        buffer.publish(message("d2"))
    broker.reachable = True
    buffer.flush()
    assert broker.stored == [b"d1"]
