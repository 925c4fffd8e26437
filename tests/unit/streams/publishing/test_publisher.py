"""Dead letters of one block are under way at a time, in the order of their topic."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import MessageSizeTooLargeError

from foldtune.reasons import Rejected
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic
from streams.metrics import LOST_DEAD_LETTERS, REFUSED_RECORDS
from streams.publishing.dead_letters import reject_record, send_all_to_dead_letters
from streams.publishing.publisher import FaustEventPublisher, OutgoingRecord


class Brokers:
    """Faust's application and its topics; records are acknowledged when the test says so."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.acknowledgements: list[asyncio.Future[Any]] = []

    def topic(self, *_: object, **__: object) -> "Brokers":
        return self

    async def send(self, *, value: bytes, **_: object) -> asyncio.Future[Any]:
        # The first of them waits for longer than the others, as for a full batch.
        for _turn in range(0 if self.sent else 10):
            await asyncio.sleep(0)
        self.sent.append(value)
        self.acknowledgements.append(asyncio.get_running_loop().create_future())
        return self.acknowledgements[-1]


def letters(count: int) -> list[tuple[Any, Rejected]]:
    message = SimpleNamespace(topic="t", partition=0, offset=0, key=None, headers=())
    return [(message, Rejected(0, number, ("wrong",), b"%d" % number)) for number in range(count)]


async def _in_flight(brokers: Brokers, count: int) -> "asyncio.Task[None]":
    publisher = FaustEventPublisher(brokers, KafkaSettings())  # type: ignore[arg-type]
    task = asyncio.create_task(send_all_to_dead_letters(publisher, Topic.CHAT_LOGS, letters(count)))
    async with asyncio.timeout(5):
        while len(brokers.sent) < count:
            await asyncio.sleep(0)
    assert not task.done()
    return task


def test_dead_letters_of_a_block_await_the_brokers_together_and_keep_their_order() -> None:
    async def main() -> None:
        brokers = Brokers()
        task = await _in_flight(brokers, 50)
        assert brokers.sent == [b"%d" % number for number in range(50)]
        for future in brokers.acknowledgements:
            future.set_result(SimpleNamespace(timestamp_type=0))
        await task

    asyncio.run(main())


def test_an_unacknowledged_dead_letter_fails_the_block_once_the_others_have_ended() -> None:
    async def main() -> None:
        brokers = Brokers()
        task = await _in_flight(brokers, 3)
        brokers.acknowledgements[0].set_exception(ConnectionError("gone"))
        await asyncio.sleep(0)
        assert not task.done()
        for future in brokers.acknowledgements[1:]:
            future.set_result(SimpleNamespace(timestamp_type=0))
        with pytest.raises(ConnectionError):
            await task

    asyncio.run(main())


class Refusing:
    """Faust's application and its topics, of brokers that take no larger value than this."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.sent: list[tuple[bytes | None, dict[str, str]]] = []

    def topic(self, *_: object, **__: object) -> "Refusing":
        return self

    def get_topic_name(self) -> str:
        return "t"

    async def send(self, *, value: bytes | None, headers: list[tuple[str, bytes]], **_: object) -> asyncio.Future[Any]:
        acknowledgement: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if len(value or b"") > self.max_bytes:
            acknowledgement.set_exception(MessageSizeTooLargeError())
        else:
            self.sent.append((value, {name: content.decode() for name, content in headers}))
            acknowledgement.set_result(SimpleNamespace(timestamp_type=0))
        return acknowledgement


def send(brokers: Refusing, *values: str) -> tuple[OutgoingRecord, ...]:
    """Those that are refused."""
    publisher = FaustEventPublisher(brokers, KafkaSettings())  # type: ignore[arg-type]
    records = [OutgoingRecord(Topic.FINE_TUNE_STATUS.label, 0, "m/r", value) for value in values]
    return asyncio.run(publisher.send(tuple(records)))


@pytest.mark.parametrize("max_bytes", [1_000, 10_000_000])
def test_a_record_that_cannot_be_written_is_a_dead_letter_and_the_others_are_written(max_bytes: int) -> None:
    """By the brokers' bound, or by ours, which is below theirs."""
    brokers = Refusing(max_bytes)
    counted = REFUSED_RECORDS.labels(Topic.FINE_TUNE_STATUS.label)
    before = counted._value.get()
    large = "x" * Topic.FINE_TUNE_STATUS.max_record_bytes
    assert [record.value for record in send(brokers, "before", large, "after")] == [large]
    assert [value for value, _ in brokers.sent[:2]] == [b"before", b"after"]
    ((letter, headers),) = brokers.sent[2:]
    # Without its value where the dead letters take none of this size either.
    assert letter == (None if max_bytes == 1_000 else large.encode())
    assert headers["foldtune-error"].startswith("value of") is (max_bytes == 1_000)
    assert counted._value.get() == before + 1


def test_a_dead_letter_that_no_topic_takes_is_counted_and_ends_nothing() -> None:
    before = LOST_DEAD_LETTERS._value.get()
    assert len(send(Refusing(-1), "value")) == 1
    assert LOST_DEAD_LETTERS._value.get() == before + 1


def test_the_dead_letter_of_a_replayed_record_names_the_earlier_one() -> None:
    brokers = Refusing(1_000)
    publisher = FaustEventPublisher(brokers, KafkaSettings())  # type: ignore[arg-type]
    fields = {"topic": "chat-logs", "partition": 1, "offset": 150, "key": b"f", "value": b"{"}
    message = SimpleNamespace(**fields, headers=(("foldtune-letter", b"1:7"),))
    asyncio.run(reject_record(publisher, Topic.CHAT_LOGS, message, ValueError("no JSON")))
    [(_, headers)] = brokers.sent
    assert headers["foldtune-replay-of"] == "1:7"
