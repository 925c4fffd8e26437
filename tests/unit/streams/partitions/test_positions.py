"""State is a function of the topics: of neither the cuts of blocks, nor redelivery, nor any clock."""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldtune.bounds import Bounds
from foldtune.settings import SetLimits, Sets
from foldtune.topics import DATA_TOPICS, Topic
from streams.metrics import NOT_KEPT
from streams.partitions.positions import Position, position_changes, stored_position, with_plausible_times
from streams.training_sets.fold import FolderSet, fold
from streams.training_sets.ingest import Ingest
from streams.training_sets.store import TrainingSets
from tests.examples import examples
from tests.memory_table import MemoryTable

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)
FAR = datetime(2099, 6, 1, tzinfo=UTC)


@dataclass
class Message:
    """As Kafka delivers it."""

    offset: int
    timestamp: int
    value: bytes
    key: bytes = b"f"
    topic: str = "t"
    partition: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()


def chat_log(log_id: str, at: datetime) -> bytes:
    head = '{"type":"chat_log","agent_id":"a","question":"how?","folder_id":"f","cited_document_ids":["d"],'
    return (head + f'"log_id":"{log_id}","occurred_at":"{at.isoformat()}"}}').encode()


def document(document_id: str, at: datetime) -> bytes:
    head = '{"type":"document_upserted","folder_id":"f","text":"words",'
    return (head + f'"document_id":"{document_id}","occurred_at":"{at.isoformat()}"}}').encode()


def erasure(name: str, at: datetime) -> bytes:
    head = f'{{"type":"erasure_requested","erasure_id":"e{name}","subject":"document","subject_id":"{name}",'
    return (head + f'"occurred_at":"{at.isoformat()}"}}').encode()


class Owner:
    """A worker that owns the partition, and continues from what is in the table."""

    def __init__(self, table: MemoryTable, limits: Sets | None = None) -> None:
        self.table = table
        self.sets = TrainingSets(table, limits or Sets())
        self.letters: set[int] = set()
        publisher = mock.Mock()
        publisher.send_to_dead_letters = self._reject
        self._ingest = Ingest(self.sets, publisher, Bounds(), limits or Sets(), None)

    async def _reject(self, *letter: Any) -> None:
        _, _, _, (_, _, offset), *_ = letter
        self.letters.add(offset)

    def take(self, topic: Topic, messages: list[Message], *, crash: bool = False) -> None:
        """Handle a block as ``PartitionConsumer`` does; a crash loses the position after it."""
        records, after = with_plausible_times(messages, stored_position(self.table, topic, 0))

        async def run() -> None:
            await self._ingest.handle(topic, 0, records)
            if not crash:
                await self.sets.write(0, position_changes(topic, after))

        asyncio.run(run())

    def content(self) -> FolderSet:
        view = self.sets.view(0)
        records = view.records(view.segments.get("f", ()))
        return fold("f", records, view.erasures(), SetLimits(max_age=timedelta(days=36_500)), FAR)


# Of every kind: none, zero, seconds, minutes around noon in any order, micro- and nanoseconds, the far future.
timestamps = st.one_of(
    st.sampled_from([-1, 0, 1, NOON_MS // 1000, NOON_MS * 1000, NOON_MS * 10**6, (1 << 63) - 1]),
    st.integers(-30, 30).map(lambda minutes: NOON_MS + minutes * 60_000),
    st.just(int(FAR.timestamp() * 1000)),
)
occurrences = st.integers(-40, 40).map(lambda minutes: NOON + timedelta(minutes=minutes)) | st.sampled_from(
    [FAR, NOON - timedelta(days=365), NOON - timedelta(days=9_000)]
)
names = st.sampled_from("abc")


@given(
    topic=st.sampled_from([topic for topic in DATA_TOPICS if topic is not Topic.FEEDBACK]),
    arrivals=st.lists(st.tuples(timestamps, names, occurrences), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    crashes=st.lists(st.booleans(), min_size=1, max_size=12),
    back=st.lists(st.integers(0, 3), min_size=1, max_size=12),
)
@settings(max_examples=examples(25), deadline=None)
def test_state_is_the_same_however_blocks_are_cut_and_redelivered(
    topic: Topic, arrivals: list[Any], cuts: list[int], crashes: list[bool], back: list[int]
) -> None:
    encode = {Topic.CHAT_LOGS: chat_log, Topic.DOCUMENTS: document, Topic.ERASURES: erasure}[topic]
    messages = [Message(at, time, encode(name, moment)) for at, (time, name, moment) in enumerate(arrivals)]
    one_by_one = Owner(MemoryTable())
    for message in messages:
        one_by_one.take(topic, [message])
    table, positions = MemoryTable(), [Position(0, 0)]
    owner, letters = Owner(table), set()
    while (start := stored_position(table, topic, 0).offset) < len(messages):
        size, crash, rewind = (drawn.pop(0) if drawn else 0 for drawn in (cuts, crashes, back))
        owner.take(topic, messages[start : start + (size or len(messages))], crash=bool(crash))
        letters |= owner.letters
        positions.append(stored_position(table, topic, 0))
        # A zombie stores an older position, and the partition changes hands.
        if rewind:
            asyncio.run(table.write(0, position_changes(topic, positions[-rewind % len(positions)])))
            owner = Owner(table)
    assert owner.content() == one_by_one.content()
    assert owner.sets.erasures(0) == one_by_one.sets.erasures(0)
    assert letters == one_by_one.letters
    assert owner.sets.view(0).too_old("f") == one_by_one.sets.view(0).too_old("f")
    assert stored_position(table, topic, 0) == stored_position(one_by_one.table, topic, 0)


@pytest.mark.parametrize("timestamp", [-1, 0, NOON_MS // 1000, NOON_MS * 1000, None])
def test_a_time_that_cannot_be_meant_counts_as_the_newest_before_it(timestamp: Any) -> None:
    owner = Owner(MemoryTable())
    before = [Message(0, NOON_MS, chat_log("a", NOON)), Message(1, NOON_MS - 60_000, chat_log("b", NOON))]
    owner.take(Topic.CHAT_LOGS, before)
    later = NOON + timedelta(minutes=9)
    owner.take(
        Topic.CHAT_LOGS, [Message(2, timestamp, chat_log("c", later)), Message(3, timestamp, chat_log("d", FAR))]
    )
    assert [judged.log.log_id for judged in owner.content().logs] == ["a", "b", "c"]
    assert owner.letters == {3}


def test_the_position_of_an_older_version_is_read_and_written_for_it() -> None:
    table = MemoryTable()
    assert stored_position(table, Topic.CHAT_LOGS, 0) == Position(0, 0)
    asyncio.run(table.write(0, {b"o|chat-logs": b"7"}))
    assert stored_position(table, Topic.CHAT_LOGS, 0) == Position(7, 0)
    asyncio.run(table.write(0, position_changes(Topic.CHAT_LOGS, Position(9, NOON_MS))))
    assert table.get(0, b"o|chat-logs") == b"9"
    # After a rollback that read on, what it read is read again: from where the time is known.
    asyncio.run(table.write(0, {b"o|chat-logs": b"12"}))
    assert stored_position(table, Topic.CHAT_LOGS, 0) == Position(9, NOON_MS)


@pytest.mark.parametrize("garbage", [b"?", b"-1 0", b"9 9 9", b"\xff", b"1" * 19, b"1 " + b"9" * 14])
def test_a_stored_offset_that_is_not_readable_makes_the_records_be_read_again(garbage: bytes) -> None:
    table = MemoryTable()
    asyncio.run(table.write(0, {b"n|chat-logs": garbage, b"o|chat-logs": b"7"}))
    assert stored_position(table, Topic.CHAT_LOGS, 0) == Position(7, 0)
    asyncio.run(table.write(0, {b"o|chat-logs": garbage}))
    assert stored_position(table, Topic.CHAT_LOGS, 0) == Position(0, 0)


def test_logs_that_are_too_old_when_they_arrive_are_counted_by_folder() -> None:
    owner = Owner(MemoryTable(), Sets(max_age=timedelta(days=30), folders={"f": {"max_age": "P10D"}}))
    counted = NOT_KEPT.labels("chat-logs", "too_old")
    before = counted._value.get()
    days = [NOON - timedelta(days=age) for age in (0, 9, 11, 29, 31)]
    messages = [Message(at, NOON_MS, chat_log(str(at), moment)) for at, moment in enumerate(days)]
    other = [
        replace(message, value=message.value.replace(b'"f"', b'"g"'), offset=message.offset + 5) for message in messages
    ]
    owner.take(Topic.CHAT_LOGS, messages + other, crash=True)
    owner.take(Topic.CHAT_LOGS, messages + other)
    view = owner.sets.view(0)
    assert [view.too_old(folder) for folder in ("f", "g", "h")] == [3, 1, 0]
    assert counted._value.get() - before == 2 * 4
