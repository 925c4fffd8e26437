"""Dead letters of one block are under way at a time, in the order of their topic."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from foldtune.reasons import Rejected
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic
from streams.publishing.dead_letters import send_all_to_dead_letters
from streams.publishing.publisher import FaustEventPublisher


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
    message = SimpleNamespace(topic="t", partition=0, offset=0, key=None)
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
