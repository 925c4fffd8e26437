"""Which snapshot commands are exported."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from aiokafka.errors import KafkaTimeoutError, OffsetOutOfRangeError
from structlog.testing import capture_logs

from foldtune import events
from foldtune.events import (
    FineTuneStatus,
    SnapshotCommand,
    SnapshotPart,
    State,
    TopicOffset,
    TrainingFinished,
    TrainingProgressed,
)
from foldtune.kafka import partition_of
from foldtune.knobs import DataSelection
from foldtune.policy import Rule, RuleData
from foldtune.settings import KafkaSettings, Sets, Settings
from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.broker_clock import BrokerClock
from streams.partitions.positions import History, Lost, Position
from streams.publishing.publisher import EventPublisher
from streams.snapshots import command_handler
from streams.snapshots.command_handler import DataOffsets, SnapshotCommandHandler
from streams.snapshots.folder_stats import Summary
from streams.training_sets.state_events import ChatLog, DocumentUpserted, Feedback, StateRecord, Verdict
from streams.training_sets.store import TrainingSets
from tests.acknowledgement import acknowledgement
from tests.memory_table import MemoryTable
from tests.support import fine_tune_request

NOW = datetime(2026, 11, 26, tzinfo=UTC)


class ExportedError(Exception):
    """The snapshot is not left out."""


def error_of(issued_at: datetime, *statuses: bytes, then: Exception | None = None) -> str:
    """What the part says that answers a command, whose export would raise ``ExportedError``."""
    settings = Settings()

    async def statuses_since(partition: int, moment: datetime) -> AsyncIterator[Any]:
        assert (partition, moment) == (partition_of("model", settings.kafka.partitions), issued_at)
        for value in statuses:
            yield SimpleNamespace(value=value)
        if then:
            raise then

    publisher, anything = mock.create_autospec(EventPublisher, instance=True), mock.Mock()
    publisher.publish.return_value = ()
    offsets: Any = mock.Mock(catch_up=mock.AsyncMock(side_effect=ExportedError))
    sets = TrainingSets(MemoryTable(), Sets())
    handler = SnapshotCommandHandler(sets, offsets, publisher, anything, settings, statuses=statuses_since)
    command = SnapshotCommand(request=fine_tune_request("r"), partition=0, issued_at=issued_at)
    asyncio.run(handler.export(command, 2))
    ((event,), _) = publisher.publish.await_args.args
    assert event.topic is Topic.SNAPSHOT_PARTS
    assert isinstance(event.event, SnapshotPart)
    assert (event.event.partition, event.event.examples) == (2, None)
    return event.event.error or ""


@pytest.mark.parametrize("days", [0, 365, -365])
def test_a_command_whose_request_has_timed_out_by_the_brokers_time_is_answered_and_not_exported(
    monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    clock, timeout = BrokerClock(), Settings().worker.snapshot_timeout
    monkeypatch.setattr(command_handler, "CLOCK", clock)
    monkeypatch.setattr(events, "now", lambda: NOW + timedelta(days=days))
    stale = NOW - timeout - timedelta(seconds=1)
    # The brokers' time is not known yet.
    assert "ExportedError" in error_of(stale)
    clock.observe(acknowledgement(NOW))
    assert "more than 0:15:00 after it was issued" in error_of(stale)
    assert "ExportedError" in error_of(NOW - timeout + timedelta(minutes=1))


def status(state: State = State.CANCELLED, **changes: Any) -> bytes:
    fields: dict[str, Any] = {"request_id": "r", "model": "model", "state": state, "at": NOW, **changes}
    return FineTuneStatus(**fields).encode()


@pytest.mark.parametrize(
    ("statuses", "ended"),
    [
        ([status()], True),
        ([status(State.SNAPSHOTTING), status(State.FAILED)], True),
        # Cancelled by the last who shared the training.
        ([status(run_continues=True), status()], True),
        ([], False),
        ([status(State.SNAPSHOTTING), b"{nope", b""], False),
        ([status(request_id="other"), status(model="other")], False),
        ([status(run_continues=True)], False),
    ],
)
def test_the_command_of_an_ended_request_is_answered_and_not_exported(statuses: list[bytes], ended: bool) -> None:
    error = error_of(events.now(), *statuses)
    assert error == "the request has ended" if ended else "ExportedError" in error


@pytest.mark.parametrize("error", [KafkaTimeoutError(), OffsetOutOfRangeError({})])
def test_a_command_is_exported_where_the_brokers_do_not_tell_whether_its_request_has_ended(error: Exception) -> None:
    assert "ExportedError" in error_of(events.now(), status(State.SNAPSHOTTING), then=error)
    assert error_of(events.now(), status(), then=error) == "the request has ended"


def test_what_feedback_labels_is_new_until_the_training_of_a_snapshot_that_has_it() -> None:
    publisher, anything = mock.create_autospec(EventPublisher, instance=True), mock.Mock()
    publisher.publish.return_value = ()
    sets = TrainingSets(MemoryTable(), Sets())
    handler = SnapshotCommandHandler(sets, anything, publisher, anything, Settings(), statuses=anything)
    logs = [ChatLog(f"l{at}", NOW, "a", "how?", "f") for at in range(6)]
    feedback = [Feedback("b", NOW, f"l{at}", "f", Verdict(correct_document_id="d")) for at in range(6)]

    async def new_examples() -> int:
        await handler.report_progress("m", Rule(), 0)
        ((event,), _) = publisher.publish.await_args.args
        assert isinstance(event.event, TrainingProgressed)
        return event.event.new_examples

    async def snapshot(request_id: str, verdicts: int) -> None:
        offsets = tuple(
            TopicOffset(topic=topic.label, partition=0, offset=offset)
            for topic, offset in ((Topic.CHAT_LOGS, 6), (Topic.FEEDBACK, verdicts))
        )
        command = SnapshotCommand(request=fine_tune_request(request_id, model="m"), partition=0, issued_at=NOW)
        part = SnapshotPart(request_id=request_id, model="m", partition=0, offsets=offsets)
        with mock.patch.object(handler, "_export_or_failure", mock.AsyncMock(return_value=part)):
            await handler.export(command, 0)

    async def trained(request_id: str) -> None:
        await handler.training_finished(TrainingFinished(request_id=request_id, model="m"), 0)

    async def scenario() -> list[int]:
        found = []
        await sets.add(0, Topic.CHAT_LOGS, [StateRecord(at, 0, log, 100) for at, log in enumerate(logs)])
        found.append(await new_examples())
        for at, event in enumerate(feedback):
            await sets.add(0, Topic.FEEDBACK, [StateRecord(at, 0, event, 100)])
        found.append(await new_examples())
        # Of two snapshots that differ in their feedback alone; and of one that is trained on late.
        for request_id, verdicts in (("r0", 0), ("r1", 2), ("r2", 5)):
            await snapshot(request_id, verdicts)
        for request_id in ("r1", "r2", "r0"):
            await trained(request_id)
            found.append(await new_examples())
        return found

    assert asyncio.run(scenario()) == [0, 6, 4, 1, 1]


def test_a_rule_counts_from_the_last_training_that_covers_its_folders() -> None:
    publisher, anything = mock.create_autospec(EventPublisher, instance=True), mock.Mock()
    publisher.publish.return_value = ()
    sets = TrainingSets(MemoryTable(), Sets())
    summaries = {"f": Summary(examples=9, documents=4), "g": Summary(examples=1), "elsewhere": Summary(examples=99)}
    handler = SnapshotCommandHandler(
        sets, anything, publisher, anything, Settings(), statuses=anything, summaries=lambda _: summaries
    )
    rules = [Rule(name=name, data=RuleData(folders=(name,)), changed_documents=0.1) for name in ("f", "g")]
    everything = Rule(name="all", new_examples=1)

    async def reports() -> list[tuple[int, int, str | None]]:
        found = []
        for rule in (*rules, everything):
            publisher.publish.reset_mock()
            handler._last_reports.clear()
            await handler.report_progress("m", rule, 0)
            ((event,), _) = publisher.publish.await_args.args
            assert isinstance(event.event, TrainingProgressed)
            assert event.event.rule == rule.key
            found.append((event.event.new_examples, event.event.changed_documents, event.event.trained_request_id))
        return found

    async def training(request_id: str, rules: tuple[str, ...] | None, *, everything: bool = False) -> None:
        offsets = tuple(
            TopicOffset(topic=topic.label, partition=0, offset=offset)
            for topic, offset in ((Topic.CHAT_LOGS, 4), (Topic.DOCUMENTS, 4))
        )
        command = SnapshotCommand(request=fine_tune_request(request_id, model="m"), partition=0, issued_at=NOW)
        part = SnapshotPart(request_id=request_id, model="m", partition=0, offsets=offsets)
        with mock.patch.object(handler, "_export_or_failure", mock.AsyncMock(return_value=part)):
            await handler.export(command, 0)
        finished = TrainingFinished(request_id=request_id, model="m", rules=rules, everything=everything)
        await handler.training_finished(finished, 0)

    async def scenario() -> None:
        for folder_id in ("f", "g"):
            logs = [ChatLog(f"l{at}", NOW, "a", "how?", folder_id, feedback=Verdict(rating="like")) for at in range(6)]
            await sets.add(0, Topic.CHAT_LOGS, [StateRecord(at, 0, log, 100) for at, log in enumerate(logs)])
            # Three documents, one of them in four versions.
            documents = [DocumentUpserted(f"d{max(at - 3, 0)}", folder_id, NOW, "text") for at in range(6)]
            await sets.add(
                0, Topic.DOCUMENTS, [StateRecord(at, 0, document, 100) for at, document in enumerate(documents)]
            )
        assert await reports() == [(6, 3, None), (6, 3, None), (12, 0, None)]
        await training("r1", (rules[0].key,))
        assert await reports() == [(2, 2, "r1"), (6, 3, None), (12, 0, None)]
        await training("r2", (), everything=False)
        assert await reports() == [(2, 2, "r1"), (6, 3, None), (12, 0, None)]
        await training("r3", tuple(rule.key for rule in (*rules, everything)), everything=True)
        assert await reports() == [(2, 2, "r3"), (2, 2, "r3"), (4, 0, "r3")]
        # Of a coordinator of the release before, any training.
        await training("r4", None)
        assert {request_id for _, _, request_id in await reports()} == {"r4"}

    asyncio.run(scenario())


def test_usable_examples_are_those_of_the_folders_that_were_counted() -> None:
    publisher, anything = mock.create_autospec(EventPublisher, instance=True), mock.Mock()
    publisher.publish.return_value = ()
    sets, summaries = TrainingSets(MemoryTable(), Sets()), dict[str, Summary]()
    handler = SnapshotCommandHandler(
        sets, anything, publisher, anything, Settings(), statuses=anything, summaries=lambda _: summaries
    )

    async def usable() -> int | None:
        await handler.report_progress("m", Rule(data=RuleData(folders=("f",))), 0)
        ((event,), _) = publisher.publish.await_args.args
        assert isinstance(event.event, TrainingProgressed)
        return event.event.usable

    async def scenario() -> list[int | None]:
        found = [await usable()]
        for folder_id in ("f", "g"):
            await sets.add(0, Topic.CHAT_LOGS, [StateRecord(0, 0, ChatLog("l", NOW, "a", "how?", folder_id), 100)])
        found.append(await usable())
        summaries.update(f=Summary(examples=7), g=Summary(examples=90))
        return [*found, await usable()]

    # Of a partition without the folder nothing is missing.
    assert asyncio.run(scenario()) == [0, None, 7]


def touched(issued_at: datetime, data: DataSelection, *, partition: int = 0, partitioner: Any = "murmur2") -> list[str]:
    """Of what was lost at ``NOW``, what a request is told."""
    lost = {"expired": Lost(5, int(NOW.timestamp() * 1000))}
    position = Position(9, 0, History(shift=3, lost=lost))
    offsets = DataOffsets(lambda topic, _: Position(9, 0) if topic is Topic.FEEDBACK else position, mock.Mock(), bool)
    assert {offset.topic: offset.offset for offset in offsets.next_offsets(partition)} == {
        "chat-logs": 12,
        "documents": 12,
        "feedback": 9,
        "erasures": 12,
    }
    settings = Settings(
        sets=Sets(max_age=timedelta(days=30), folders={"f": {"max_age": "P60D"}}),
        kafka=KafkaSettings(partitioner=partitioner),
    )
    anything: Any = mock.Mock()
    sets = TrainingSets(MemoryTable(), Sets())
    handler = SnapshotCommandHandler(sets, offsets, anything, anything, settings, statuses=anything)
    request = fine_tune_request("r").model_copy(update={"data": data})
    command = SnapshotCommand(request=request, partition=0, issued_at=issued_at)
    found = list(handler._touched_by_loss(command, partition))
    assert {(loss.cause, loss.records, loss.last_at) for loss in found} <= {("expired", 5, NOW)}
    return [loss.topic for loss in found]


def test_a_request_is_told_of_losses_that_its_selection_might_have_had() -> None:
    everything, forever = ["chat-logs", "documents", "erasures"], ["documents", "erasures"]
    assert touched(NOW, DataSelection()) == everything
    # The longest of all sets; documents and erasures do not age.
    assert touched(NOW + timedelta(days=59), DataSelection()) == everything
    assert touched(NOW + timedelta(days=61), DataSelection()) == forever
    assert touched(NOW, DataSelection(start=NOW - timedelta(days=1))) == everything
    assert touched(NOW + timedelta(days=9), DataSelection(start=NOW + timedelta(days=1))) == forever
    mine = partition_of("g", Settings().kafka.partitions)
    assert touched(NOW, DataSelection(folders=("g",)), partition=mine) == everything
    assert touched(NOW, DataSelection(folders=("g",)), partition=mine + 1) == []
    assert touched(NOW, DataSelection(folders=("g",)), partition=mine + 1, partitioner="other") == everything


@pytest.mark.parametrize("shrunk", [False, True])
def test_an_export_waits_for_a_topic_whose_end_is_behind_the_offset(*, shrunk: bool) -> None:
    """Nothing of it is ingested; what the consumer reads next has the former records' offsets."""
    positions = {topic: Position(9, 0) for topic in DATA_TOPICS}

    async def end_offsets(_: int) -> dict[Topic, int]:
        return {Topic.CHAT_LOGS: 5 if shrunk else 9, Topic.DOCUMENTS: 9}

    async def scenario() -> None:
        offsets = DataOffsets(lambda topic, _: positions[topic], end_offsets, bool)
        waiting = asyncio.create_task(offsets.catch_up(1, timedelta(seconds=5)))
        await asyncio.sleep(0.06)
        assert waiting.done() is not shrunk
        positions[Topic.CHAT_LOGS] = Position(3, 0, History(shift=9))
        await asyncio.sleep(0.06)
        assert waiting.done() is not shrunk
        positions[Topic.CHAT_LOGS] = Position(5, 0, History(shift=9))
        await waiting

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert not logs
