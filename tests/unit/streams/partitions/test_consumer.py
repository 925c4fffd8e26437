"""An exception while a record is handled ends that record, and the process only if the surroundings are at fault."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import MessageSizeTooLargeError, NotLeaderForPartitionError
from faust.exceptions import ProducerSendError

from foldtune.errors import ObjectStoreError, PublishError, RecordRefusedError
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic
from streams.errors import PartitionLostError, UnreadableStateError
from streams.partitions.consumer import PartitionConsumer, is_at_fault
from streams.partitions.producing import acknowledged, enqueue
from tests.memory_table import MemoryTable

DEFECTS = (KeyError("x"), ValueError("x"), RecursionError(), OverflowError(), UnreadableStateError(0, b"k", "x"))
SURROUNDINGS = (
    NotLeaderForPartitionError(),
    ProducerSendError("no broker"),
    ObjectStoreError("https://s3"),
    OSError(28, "No space left on device"),
    MemoryError(),
    PartitionLostError(0),
    # How RocksDB's own errors arrive.
    Exception("IO error: No space left on device"),
)


class Handled:
    """Records handled and rejected; those of ``bad`` raise ``error``."""

    def __init__(self, error: Exception, bad: set[int]) -> None:
        self.error, self.bad = error, bad
        self.stored: list[int] = []
        self.rejected: list[int] = []
        self.calls = 0
        settings, table = KafkaSettings(partitions=1), cast(Any, MemoryTable())
        self.consumer = PartitionConsumer(
            settings,
            (Topic.CHAT_LOGS,),
            table,
            write=table.write,
            handle=self.handle,
            reject=self.reject,
            block_records=1_000,
        )

    async def handle(self, _: Topic, __: int, messages: Sequence[Any]) -> None:
        self.calls += 1
        if any(message.offset in self.bad for message in messages):
            raise self.error
        self.stored += [message.offset for message in messages]

    async def reject(self, _: Topic, message: Any, error: Exception) -> None:
        assert error is self.error
        self.rejected.append(message.offset)

    def run(self, count: int) -> None:
        block = [SimpleNamespace(offset=offset) for offset in range(count)]
        asyncio.run(self.consumer._handle_or_reject(Topic.CHAT_LOGS, 0, block))


@pytest.mark.parametrize("error", DEFECTS, ids=lambda error: type(error).__name__)
def test_only_the_records_at_fault_are_rejected_and_all_others_handled_in_order(error: Exception) -> None:
    handled = Handled(error, {0, 500, 501, 999})
    handled.run(1_000)
    assert handled.rejected == [0, 500, 501, 999]
    assert handled.stored == [offset for offset in range(1_000) if offset not in handled.bad]
    assert handled.calls < 100


@pytest.mark.parametrize("error", SURROUNDINGS, ids=lambda error: type(error).__name__)
def test_no_record_is_rejected_for_what_the_surroundings_are_at_fault_for(error: Exception) -> None:
    handled = Handled(error, {1})
    with pytest.raises(type(error)):
        handled.run(3)
    assert handled.rejected == []


def test_an_invalid_record_is_rejected_while_the_worker_stops() -> None:
    handled = Handled(KeyError("x"), {1})
    handled.consumer.stop()
    handled.run(3)
    assert (handled.stored, handled.rejected) == ([0, 2], [1])


def test_no_record_is_rejected_for_what_a_stopping_worker_has_closed() -> None:
    handled = Handled(RuntimeError("cannot schedule new futures after shutdown"), {1})
    handled.consumer.stop()
    with pytest.raises(RuntimeError):
        handled.run(3)
    assert handled.rejected == []


class RefusingTopic:
    """A Faust topic whose client or brokers refuse a record."""

    def __init__(self, error: Exception, *, at_once: bool) -> None:
        self._error, self._at_once = error, at_once

    def get_topic_name(self) -> str:
        return "t"

    async def send(self, **_: object) -> Any:
        if self._at_once:
            raise ProducerSendError("wrapped") from self._error
        future = asyncio.get_running_loop().create_future()
        future.set_exception(self._error)
        return future


@pytest.mark.parametrize("at_once", [True, False])
def test_a_record_that_client_or_brokers_refuse_is_at_fault_itself(*, at_once: bool) -> None:
    async def write(error: Exception) -> None:
        topic = RefusingTopic(error, at_once=at_once)
        await acknowledged(topic, await enqueue(topic, key=None, value=b""))

    with pytest.raises(RecordRefusedError, match="t, ") as refused:
        asyncio.run(write(MessageSizeTooLargeError()))
    assert is_at_fault(refused.value)
    assert not is_at_fault(PublishError("t"))
    with pytest.raises((NotLeaderForPartitionError, ProducerSendError)):
        asyncio.run(write(NotLeaderForPartitionError()))
