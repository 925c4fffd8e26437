"""The state in the changelogs: a newer worker reads what an older one wrote, and writes the same bytes."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from foldtune.events import FineTuneCancelled, FineTuneRequested, FineTuneStatus, State, StateTime, TrainingFinished
from foldtune.settings import KafkaSettings, Sets, Settings
from foldtune.topics import Topic
from streams.partitions.positions import History, Lost, Position, position_changes, stored_position
from streams.partitions.restoration import LINEAGE_KEY, Lineage
from streams.requests import coordinator
from streams.requests.coordinator import Coordinator
from streams.snapshots.command_handler import SnapshotCommandHandler
from streams.training_sets import compaction, state_events
from streams.training_sets.segments import Segment, pack, unpack
from streams.training_sets.state_events import StateRecord
from streams.training_sets.store import TrainingSets
from tests.memory_table import MemoryTable

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EVENTS: list[tuple[Topic, state_events.StateEvent, bytes]] = [
    (
        Topic.CHAT_LOGS,
        state_events.ChatLog(
            log_id="l",
            occurred_at=NOON,
            agent_id="a",
            question="how?",
            folder_id="f",
            conversation_id="c",
            user_id="u",
            answer="not stored",
            retrieved=(state_events.RetrievedPassage("d", "f", 1, score=0.5, text="words"),),
            cited_document_ids=("d",),
            feedback=state_events.Verdict(rating="like"),
        ),
        b'{"type":"chat_log","log_id":"l","occurred_at":"2026-01-01T12:00:00Z","agent_id":"a","question":"how?",'
        b'"folder_id":"f","conversation_id":"c","user_id":"u","retrieved":[{"document_id":"d","folder_id":"f",'
        b'"rank":1,"score":0.5,"text":"words"}],"cited_document_ids":["d"],"feedback":{"rating":"like"}}',
    ),
    (
        Topic.CHAT_LOGS,
        state_events.LogTombstone("l", NOON, "f"),
        b'{"type":"erased_log","log_id":"l","occurred_at":"2026-01-01T12:00:00Z","folder_id":"f"}',
    ),
    (
        Topic.FEEDBACK,
        state_events.Feedback("b", NOON, "l", "f", state_events.Verdict(correct_document_id="d")),
        b'{"type":"feedback","feedback_id":"b","occurred_at":"2026-01-01T12:00:00Z","log_id":"l","folder_id":"f",'
        b'"verdict":{"correct_document_id":"d"}}',
    ),
    (
        Topic.FEEDBACK,
        state_events.FeedbackTombstone("l", NOON, "f"),
        b'{"type":"erased_feedback","log_id":"l","occurred_at":"2026-01-01T12:00:00Z","folder_id":"f"}',
    ),
    (
        Topic.DOCUMENTS,
        state_events.DocumentUpserted("d", "f", NOON, "words"),
        b'{"type":"document_upserted","document_id":"d","folder_id":"f","occurred_at":"2026-01-01T12:00:00Z",'
        b'"text":"words"}',
    ),
    (
        Topic.DOCUMENTS,
        state_events.DocumentDeleted("d", "f", NOON),
        b'{"type":"document_deleted","document_id":"d","folder_id":"f","occurred_at":"2026-01-01T12:00:00Z"}',
    ),
    (
        Topic.ERASURES,
        state_events.ErasureRequested("e", NOON, "user", "u"),
        b'{"type":"erasure_requested","erasure_id":"e","occurred_at":"2026-01-01T12:00:00Z","subject":"user",'
        b'"subject_id":"u"}',
    ),
]


@pytest.mark.parametrize(("topic", "event", "encoded"), EVENTS)
def test_every_event_of_a_segment_is_read(topic: Topic, event: state_events.StateEvent, encoded: bytes) -> None:
    record = StateRecord(7, 2, event, 300)
    ((_, content),) = pack(topic, [record])
    assert content == b"[[7,2," + encoded + b",300]]"
    assert unpack(content) == [record]


def test_the_key_of_a_segment_is_read() -> None:
    log = state_events.ChatLog("l", NOON, "a", "how?", 'f "1"', cited_document_ids=("d",))
    ((segment, _),) = pack(Topic.CHAT_LOGS, [StateRecord(7, 0, log, 300), StateRecord(9, 0, log, 300)])
    key = (
        b"s|1455cfb6d047f4ee|chat-logs|0000000000000007-0000000000000009|2|2|1767268800000|1767268800000|325"
        b'|9e07ed0fb580e966|"f \\"1\\""'
    )
    assert segment.key == key
    assert Segment.from_key(key) == segment


def test_where_a_topic_is_continued_is_read() -> None:
    table = MemoryTable()
    history = History("c2e1-9", 60, {"expired": Lost(500, 1767268800001), "truncated": Lost(2, 1767268800002)})
    for value, position in (
        (b"7 1767268800000", Position(7, 1767268800000)),
        (
            b'7 1767268800000 {"topic_id":"c2e1-9","shift":60,'
            b'"lost":{"expired":[500,1767268800001],"truncated":[2,1767268800002]}}',
            Position(7, 1767268800000, history),
        ),
    ):
        assert position_changes(Topic.CHAT_LOGS, position) == {b"n|chat-logs": value, b"o|chat-logs": b"7"}
        asyncio.run(table.write(0, {b"n|chat-logs": value}))
        assert stored_position(table, Topic.CHAT_LOGS, 0) == position


def test_the_lineage_of_a_changelog_is_read() -> None:
    value = b"0123456789abcdef0123456789abcdef 99"
    assert Lineage.decode(value) == Lineage(b"0123456789abcdef0123456789abcdef", 99)
    assert Lineage.decode(value).encode() == value
    assert LINEAGE_KEY == b"x|lineage"


def test_the_marker_of_compaction_is_read() -> None:
    table = MemoryTable()
    sets = TrainingSets(table, Sets(max_examples=1))

    async def story() -> None:
        logs = [state_events.ChatLog(f"l{n}", NOON, "a", "how?", "f") for n in range(4)]
        await sets.add(0, Topic.CHAT_LOGS, [StateRecord(n, 0, log, 100) for n, log in enumerate(logs)])
        await sets.write(0, {b"o|chat-logs": b"4", b"o|erasures": b"1"})
        await compaction.maintain(sets, 0, NOON)

    asyncio.run(story())
    marks = {key: table.get(0, key) for key in table.keys(0, b"c|")}
    assert marks == {b"c|s|252f10c83610ebca|chat-logs": b"[1,131]"}


def test_an_erasure_is_read() -> None:
    table = MemoryTable()
    sets = TrainingSets(table, Sets())
    erasure = state_events.ErasureRequested("e", NOON, "log", "l")

    async def story() -> None:
        log = state_events.ChatLog("l", NOON, "a", "how?", "f")
        await sets.add(0, Topic.CHAT_LOGS, [StateRecord(0, 0, log, 100)])
        await sets.add(0, Topic.ERASURES, [StateRecord(0, 0, erasure, 100)])

    asyncio.run(story())
    assert {key: table.get(0, key) for prefix in (b"e|", b"q|") for key in table.keys(0, prefix)} == {
        b"e|099b8065ea730bc745ab9b5f39da2a83": b'["log",false,"ef7207b7ed81db878a7bb14223146ade","b14aaaab",'
        b'"2026-01-01T12:00:00Z"]',
        b"q|099b8065ea730bc745ab9b5f39da2a833f79bb7b": b"e",
    }
    asyncio.run(compaction.maintain(sets, 0, NOON))
    assert {key: table.get(0, key) for prefix in (b"q|", b"x|") for key in table.keys(0, prefix)} == {
        b"x|applied": b"2026-01-01T12:00:00+00:00",
        b"x|swept": b"2026-01-01T12:00:00+00:00",
    }


def test_an_erasure_of_version_0_1_is_applied_and_its_name_is_forgotten() -> None:
    table, confirmed = MemoryTable(), []
    log = state_events.ChatLog("l", NOON, "a", "how?", "f", user_id="u-1")
    stored = [pack(Topic.CHAT_LOGS, [StateRecord(0, 0, log, 100)])]
    erasure = state_events.ErasureRequested("e", NOON, "user", "u-1")
    stored.append(pack(Topic.ERASURES, [StateRecord(0, 0, erasure, 100)]))
    content = {segment.key: value for segments in stored for segment, value in segments}
    marker = {b"x|purged": b"1f32e1169a87b4b3d1fe0a809356d94f70168a07c132f6b4005a27304632f6f3|2026-01-01"}
    asyncio.run(table.write(0, content | marker))
    sets = TrainingSets(table, Sets())
    assert sets.erasures(0).apply(StateRecord(1, 0, log, 100)).event == state_events.LogTombstone("l", NOON, "f")

    async def confirm(partition: int, erasure_ids: Sequence[str], records: int) -> None:
        confirmed.append((partition, *erasure_ids, records))

    asyncio.run(compaction.maintain(sets, 0, NOON, sweeping=compaction.Sweeping(confirm=confirm)))
    assert confirmed == [(0, "e", 1)]
    left = {key: table.get(0, key) or b"" for key in table.keys(0, b"")}
    assert b"u-1" not in b"".join([*left, *left.values()])
    assert b"x|purged" not in left
    heir = TrainingSets(table, Sets())
    assert heir.erasures(0).apply(StateRecord(1, 0, log, 100)).event == state_events.LogTombstone("l", NOON, "f")


def test_the_watermark_of_a_model_is_read() -> None:
    table = MemoryTable()
    pending = b'{"trained_request_id":null,"offset":3,"pending":{"r1":5,"r2":9}}'
    asyncio.run(table.write(0, {b"w|m": pending}))
    anything: Any = mock.Mock()
    sets = TrainingSets(table, Sets())
    handler = SnapshotCommandHandler(sets, anything, anything, anything, Settings(), statuses=anything)
    asyncio.run(handler.training_finished(TrainingFinished(request_id="r1", model="m"), 0))
    assert table.get(0, b"w|m") == b'{"trained_request_id":"r1","offset":5,"pending":{"r2":9}}'


async def no_statuses(_: int) -> AsyncIterator[Any]:
    """Of no other app id."""
    records: tuple[Any, ...] = ()
    for record in records:
        yield record


class UnavailableError(Exception):
    """The brokers take nothing."""


STATUS = FineTuneStatus(request_id="r", model="m", state=State.CANCELLED, at=NOON, reasons=("cancelled by ann",))
FINAL = STATUS.encode()


def test_a_decision_of_the_first_version_is_completed() -> None:
    # Committed, and neither published nor recorded as a final status.
    table, publisher = MemoryTable(), mock.AsyncMock()
    state = b'{"model":"m","waiting":[]}'
    message = {"topic": "fine-tune-status", "partition": 0, "key": "r", "value": FINAL.decode()}
    entry = json.dumps({"messages": [message], "ended": {"r|m|r": FINAL.decode()}}).encode()
    key = b"u|m|" + hashlib.sha256(state).hexdigest()[:32].encode()
    asyncio.run(
        table.write(0, {b"m|m": state, key: entry, b"p|m": b"{}", b"t|turn": b"", b"o|fine-tune-requests": b"7"})
    )
    asyncio.run(
        Coordinator(table, publisher, mock.Mock(), Settings(kafka=KafkaSettings(partitions=1)), no_statuses).tick(0)
    )
    ((records,), _) = publisher.send.await_args
    assert [(record.key, record.value) for record in records] == [("r", FINAL.decode())]
    assert table.get(0, b"r|m|r") == FINAL
    assert table.get(0, b"o|fine-tune-requests") == b"7"
    (claim,) = table.keys(0, b"f|")
    state_keys = [key.removeprefix(b"g" + claim[1:]) for key in table.keys(0, b"g|")]
    assert state_keys == [b"|m|m", b"|p|m"]
    assert table.get(0, b"g" + claim[1:] + b"|m|m") == state
    assert not [key for prefix in (b"m|", b"u|", b"p|") for key in table.keys(0, prefix)]


def test_the_outbox_of_a_decision_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # A request and its cancellation, of which the worker could publish neither.
    monkeypatch.setattr(coordinator, "now", lambda: NOON)
    monkeypatch.setattr("streams.partitions.fencing.uuid.uuid4", lambda: SimpleNamespace(hex="0123456789abcdef" * 2))
    table, anything = MemoryTable(), mock.Mock()
    publisher = mock.AsyncMock()
    settings = Settings(kafka=KafkaSettings(partitions=1))
    handler: Any = Coordinator(table, publisher, anything, settings, no_statuses)
    request = FineTuneRequested(request_id="r", model="m", requested_at=NOON)
    cancel = FineTuneCancelled(request_id="r", model="m", requested_at=NOON, requested_by="ann")
    claim = b"|000000000001|0123456789abcdef"

    async def story() -> None:
        await handler.handle(Topic.FINE_TUNE_REQUESTS, 0, [SimpleNamespace(value=request.encode(), timestamp=-1)])
        state = table.get(0, b"g" + claim + b"|m|m")
        assert state
        assert json.loads(state)["active"]["request"]["request_id"] == "r"
        publisher.send.side_effect = UnavailableError
        with suppress(UnavailableError):
            await handler.handle(Topic.FINE_TUNE_REQUESTS, 0, [SimpleNamespace(value=cancel.encode(), timestamp=-1)])

    asyncio.run(story())
    assert table.get(0, b"f" + claim) == b"confirmed"
    state = table.get(0, b"g" + claim + b"|m|m")
    assert state == b'{"model":"m","waiting":[],"version":2}'
    (key,) = table.keys(0, b"g" + claim + b"|u|")
    assert key == b"g" + claim + b"|u|m|" + hashlib.sha256(state).hexdigest()[:32].encode()
    # With the times of its states and what was asked for, which version 0.1 ignores.
    states = [StateTime(state=name, at=NOON) for name in ("accepted", "snapshotting", "cancelled")]
    final = STATUS.model_copy(update={"states": tuple(states), "asked_sha256": request.digest}).encode()
    message = {"topic": "fine-tune-status", "partition": 0, "key": "m/r", "value": final.decode()}
    entry = {"messages": [message, message | {"key": "r"}], "ended": {"r|m|r": final.decode()}}
    assert table.get(0, key) == json.dumps(entry, separators=(",", ":")).encode()
    assert table.get(0, b"r|m|r") == final
    assert table.get(0, b"t|turn") == b""
