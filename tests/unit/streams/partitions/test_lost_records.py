"""What a topic lost is counted exactly and once, and no record is taken for another that had its offset."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from unittest import mock

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError
from structlog.testing import capture_logs

from foldtune.settings import KafkaSettings, Sets
from foldtune.topic_admin import TopicsFound
from foldtune.topics import Topic
from streams.metrics import LOST_RECORDS
from streams.partitions import consumer as consumer_module
from streams.partitions.broker_clock import CLOCK
from streams.partitions.consumer import PartitionConsumer
from streams.partitions.lost_records import continued
from streams.partitions.positions import (
    History,
    Lost,
    Position,
    find_position,
    position_changes,
    stored_position,
)
from streams.partitions.topic_watch import TopicWatch
from streams.training_sets.compaction import maintain
from streams.training_sets.state_events import ChatLog, StateRecord
from streams.training_sets.store import TrainingSets
from tests.memory_table import MemoryTable

LOGS = Topic.CHAT_LOGS
NOW = datetime(2026, 11, 27, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)


@dataclass
class Record:
    """As aiokafka delivers it."""

    offset: int
    value: str
    timestamp: int = NOW_MS


@dataclass
class FakeTopic:
    """A topic of one partition, and a client that reads it."""

    topic_id: str = "id-1"
    first: int = 0
    values: list[str] = field(default_factory=list)
    position_: int = 0

    @property
    def end(self) -> int:
        return self.first + len(self.values)

    def expire(self, count: int) -> None:
        self.first += count
        del self.values[:count]

    def truncate(self, end: int) -> None:
        del self.values[end - self.first :]

    def make_anew(self) -> None:
        self.topic_id, self.first, self.values = self.topic_id + "'", 0, []

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self.first)

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self.end)

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.position_ = offset

    def resume(self, *_: TopicPartition) -> None: ...

    def pause(self, *_: TopicPartition) -> None: ...

    async def position(self, _: TopicPartition) -> int:
        return self.position_

    async def getmany(self, tp: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Record]]:  # noqa: ARG002
        await asyncio.sleep(0)
        if not self.first <= self.position_ <= self.end:
            raise OffsetOutOfRangeError({tp: self.position_})
        found = [
            Record(self.first + at, value) for at, value in enumerate(self.values) if self.first + at >= self.position_
        ]
        self.position_ = self.end
        return {tp: found}


class Worker:
    """Reads the topic into a table, with what it handled by the state's offsets."""

    def __init__(self, topic: FakeTopic, table: MemoryTable, *, with_ids: bool = True) -> None:
        self.topic, self.table = topic, table
        self.handled: list[tuple[int, str]] = []
        name = LOGS.named("")
        self.watch = TopicWatch(lambda: TopicsFound({name: topic.topic_id} if with_ids else {}, []))
        self.consumer = PartitionConsumer(
            KafkaSettings(partitions=1),
            (LOGS,),
            cast(Any, table),
            write=table.write,
            handle=self._handle,
            reject=mock.AsyncMock(side_effect=AssertionError),
            block_records=2,
            watch=self.watch,
        )

    async def _handle(self, _: Topic, __: int, records: Sequence[Any]) -> None:
        self.handled += [(record.offset, record.value) for record in records]

    def read(self) -> list[tuple[int, str]]:
        """Start, read to the end, and stop; what was handled."""
        return self.read_while(lambda: None)

    def read_while(self, happens: Any) -> list[tuple[int, str]]:
        """… with something that happens once the end was reached, and read to the end again."""

        async def run() -> None:
            await self.watch.look()
            task = asyncio.create_task(self.consumer._consume(self.topic, 0, 0))
            for event in (lambda: None, happens):
                event()
                await self.watch.look()
                async with asyncio.timeout(5):
                    while self._behind():
                        assert not task.done() or task.result()
                        await asyncio.sleep(0)
            self.consumer.stop()
            await task

        asyncio.run(run())
        found, self.handled = self.handled, []
        return found

    def _behind(self) -> bool:
        position = find_position(self.table, LOGS, 0)
        if position is None or position.offset != self.topic.end:
            return True
        if self.watch.ids and not position.history.topic_id:
            return True
        return bool(position.history.topic_id) and position.history.topic_id != self.topic.topic_id


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "_RETRY_SECONDS", 0)
    monkeypatch.setattr(CLOCK, "now", lambda: NOW)


def counted(cause: str) -> float:
    return float(LOST_RECORDS.labels(LOGS.label, cause)._value.get())


def lost(table: MemoryTable) -> dict[str, int]:
    return {cause: lost.records for cause, lost in stored_position(table, LOGS, 0).history.lost.items()}


@pytest.mark.parametrize("running", [False, True])
def test_records_that_expired_before_they_were_read_are_counted_exactly_and_once(*, running: bool) -> None:
    topic, table, before = FakeTopic(values=list("abcd")), MemoryTable(), counted("expired")
    worker = Worker(topic, table)

    def expire() -> None:
        topic.values += list("efghi")
        topic.expire(7)

    with capture_logs() as logs:
        if running:
            assert worker.read_while(expire) == [*enumerate("abcd"), (7, "h"), (8, "i")]
        else:
            assert worker.read() == list(enumerate("abcd"))
            expire()
            assert Worker(topic, table).read() == [(7, "h"), (8, "i")]
    (told,) = [log for log in logs if log["event"] == "records lost"]
    assert (told["log_level"], told["topic"], told["partition"], told["cause"], told["records"]) == (
        "error",
        "chat-logs",
        0,
        "expired",
        3,
    )
    assert (told["offset"], told["continued_at"]) == (4, 7)
    # Another worker, and another after that.
    topic.values += ["j"]
    assert Worker(topic, table).read() == [(9, "j")]
    assert lost(table) == {"expired": 3} == {"expired": counted("expired") - before}
    topic.values += list("kl")
    topic.expire(4)
    Worker(topic, table).read()
    assert lost(table) == {"expired": 4}


def test_what_expired_before_the_first_start_is_no_loss_and_everything_after_it_is() -> None:
    topic, table, before = FakeTopic(first=100), MemoryTable(), counted("expired")
    with capture_logs() as logs:
        assert Worker(topic, table).read() == []
    assert [(log["event"], log["log_level"], log["offset"]) for log in logs] == [
        ("topic begun behind expired records", "info", 100)
    ]
    # Nothing was ever read of it.
    topic.values += list("abc")
    topic.expire(2)
    assert Worker(topic, table).read() == [(102, "c")]
    assert lost(table) == {"expired": 2} == {"expired": counted("expired") - before}


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("with_ids", [False, True])
def test_records_that_follow_a_lost_end_are_none_of_those_that_had_their_offsets(
    *, running: bool, with_ids: bool
) -> None:
    topic, table, before = FakeTopic(values=list("abcdef")), MemoryTable(), counted("truncated")
    worker = Worker(topic, table, with_ids=with_ids)

    def truncate() -> None:
        topic.truncate(3)
        topic.values.append("x")

    if running:
        handled = worker.read_while(truncate)[6:]
    else:
        worker.read()
        truncate()
        handled = Worker(topic, table, with_ids=with_ids).read()
    # Which of them are new, nobody knows: all are read again, and the copies are told by what they say.
    assert handled == [(6, "a"), (7, "b"), (8, "c"), (9, "x")]
    assert lost(table) == {"truncated": 2} == {"truncated": counted("truncated") - before}
    topic.values.append("y")
    assert Worker(topic, table, with_ids=with_ids).read() == [(10, "y")]
    position = stored_position(table, LOGS, 0)
    assert (position.offset, position.state_offset, position.history.shift) == (5, 11, 6)
    # Where version 0.1.0 continues.
    assert table.get(0, b"o|chat-logs") == b"5"


@pytest.mark.parametrize("running", [False, True])
def test_a_topic_that_was_made_anew_and_has_grown_longer_is_read_from_its_beginning(*, running: bool) -> None:
    topic, table, before = FakeTopic(values=list("abc")), MemoryTable(), counted("recreated")
    worker = Worker(topic, table)

    def make_anew() -> None:
        topic.make_anew()
        topic.values += list("vwxyz")

    if running:
        handled = worker.read_while(make_anew)[3:]
    else:
        worker.read()
        make_anew()
        handled = Worker(topic, table).read()
    # Running, some of them were read before the other id was seen.
    assert [value for _, value in handled][-5:] == list("vwxyz")
    offsets = [offset for offset, _ in handled]
    assert offsets == sorted(set(offsets))
    assert offsets[0] >= 3
    assert counted("recreated") - before == lost(table)["recreated"] >= 3
    assert Worker(topic, table).read() == []


@pytest.mark.parametrize("at_rest", [False, True])
def test_a_topic_without_a_known_id_gets_it_also_at_rest(*, at_rest: bool) -> None:
    # As after an upgrade from a release that stored none.
    topic, table = FakeTopic(values=["a"]), MemoryTable()
    Worker(topic, table, with_ids=False).read()
    assert stored_position(table, LOGS, 0).history == History()
    topic.values += [] if at_rest else ["b"]
    Worker(topic, table).read()
    assert stored_position(table, LOGS, 0).history.topic_id == "id-1"
    topic.make_anew()
    topic.values += list("vwxyz")
    assert [value for _, value in Worker(topic, table).read()] == list("vwxyz")


def test_a_position_whose_offset_is_on_the_topic_stays() -> None:
    position = Position(5, NOW_MS, History(topic_id="a", shift=7))
    for first, end in ((0, 5), (5, 5), (5, 9), (0, 9)):
        for topic_id in ("", "a"):
            assert continued(position, first, end, topic_id, NOW) is position


def test_of_a_topic_that_was_made_anew_before_anything_was_read_nothing_is_told() -> None:
    after = continued(Position(0, 0, History(topic_id="a")), 0, 5, "b", NOW)
    assert after == Position(0, 0, History(topic_id="b"))


def test_losses_add_up_by_cause_and_the_states_offsets_never_go_back() -> None:
    position = Position(10, NOW_MS, History(topic_id="a"))
    known = position.state_offset
    for first, end, topic_id in ((12, 20, "a"), (0, 5, "a"), (3, 3, "b"), (50, 60, "c"), (0, 1, "d")):
        position = continued(position, first, end, topic_id, NOW)
        assert (position.offset, position.history.topic_id) == (first, topic_id)
        assert position.state_offset >= known
        known = position.state_offset
    assert position.history.lost == {
        "expired": Lost(2, NOW_MS),
        "truncated": Lost(7, NOW_MS),
        "recreated": Lost(0 + 3 + 50, NOW_MS),
    }


def test_a_position_is_read_as_it_was_stored() -> None:
    table = MemoryTable()
    for history in (History(), History("a-b", 7, {"expired": Lost(500, NOW_MS)})):
        position = Position(9, NOW_MS, history)
        asyncio.run(table.write(0, position_changes(LOGS, position)))
        assert stored_position(table, LOGS, 0) == position
    # Of a later version, which knows more.
    asyncio.run(table.write(0, {b"n|chat-logs": b'9 1 {"shift":7,"later":[1]}'}))
    assert stored_position(table, LOGS, 0) == Position(9, 1, History(shift=7))
    # Before topics had a history.
    asyncio.run(table.write(0, {b"n|chat-logs": None, b"p|chat-logs": b"8 1"}))
    assert stored_position(table, LOGS, 0) == Position(8, 1)


def test_what_lies_below_the_states_offset_is_maintained_and_nothing_above_it() -> None:
    table = MemoryTable()
    sets = TrainingSets(table, Sets(max_age=timedelta(days=1)))

    async def left() -> list[int]:
        for offset in (60, 61):
            log = ChatLog(f"l{offset}", NOW, "a", "how?", f"f{offset}")
            await sets.add(0, LOGS, [StateRecord(offset, 0, log, 100)])
        await table.write(0, position_changes(LOGS, Position(1, NOW_MS, History(shift=60))))
        await maintain(sets, 0, NOW + timedelta(days=9))
        return [segment.first_offset for group in sets.view(0).segments.values() for segment in group]

    assert asyncio.run(left()) == [61]
