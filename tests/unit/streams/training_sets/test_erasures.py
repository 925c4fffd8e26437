"""What an erasure reaches, how it is kept, and when it is applied to what is stored."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from pydantic import SecretStr

from foldtune.bounds import Bounds
from foldtune.settings import Sets, WorkerSettings
from foldtune.topics import Topic
from streams.errors import ErasureKeyMissingError
from streams.partitions.changelog_table import Changes
from streams.training_sets import erasures as erasures_module
from streams.training_sets.compaction import Sweeping, maintain
from streams.training_sets.erasures import ErasureRules, Erasures
from streams.training_sets.state_events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    FeedbackTombstone,
    LogTombstone,
    RetrievedPassage,
    StateEvent,
    StateRecord,
    Verdict,
)
from streams.training_sets.store import TrainingSets
from tests.memory_table import MemoryTable

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RULES = ErasureRules.of(WorkerSettings(), Bounds())


def log(at: datetime = NOON, folder_id: str = "f", question: str = "how?") -> ChatLog:
    """A log with the text of a passage of its folder, and of one of another folder with the same id."""
    retrieved = tuple(RetrievedPassage("d", folder, rank, text="words") for rank, folder in enumerate(("f", "g"), 1))
    return ChatLog("l", at, "a", question, folder_id, conversation_id="c", user_id="u", retrieved=retrieved)


def left_of(event: StateEvent, *erasures: ErasureRequested) -> StateEvent:
    return Erasures(map(RULES.erased, erasures), RULES).apply(StateRecord(0, 0, event, 100)).event


def erasure(subject: Any, subject_id: str, folder_id: str | None = None, at: datetime = NOON) -> ErasureRequested:
    return ErasureRequested("e", at, subject, subject_id, folder_id)


SUBJECTS = [("user", "u"), ("log", "l"), ("conversation", "c"), ("agent", "a"), ("folder", "f")]


@pytest.mark.parametrize(("subject", "subject_id"), SUBJECTS)
def test_a_log_is_erased_by_each_subject_in_all_folders_or_in_its_own(subject: str, subject_id: str) -> None:
    gone = LogTombstone("l", NOON, "f")
    assert left_of(log(), erasure(subject, subject_id)) == gone
    assert left_of(log(), erasure(subject, subject_id, "f")) == gone
    assert left_of(log(), erasure(subject, subject_id, "g")) != gone
    assert left_of(log(), erasure(subject, "other")) == log()


@pytest.mark.parametrize(("named", "logged"), [("e\u0301", "\u00e9"), ("\u00e9", "e\u0301")])
def test_an_erasure_reaches_either_unicode_spelling(named: str, logged: str) -> None:
    assert isinstance(left_of(log(folder_id=logged), erasure("folder", named)), LogTombstone)
    assert isinstance(left_of(log(folder_id=logged), erasure("user", "u", named)), LogTombstone)
    assert left_of(log(folder_id=logged), erasure("folder", "e")) == log(folder_id=logged)


def test_a_log_of_a_clock_that_is_ahead_is_reached() -> None:
    ahead = log(NOON + Bounds().future)
    assert isinstance(left_of(ahead, erasure("user", "u")), LogTombstone)
    later = log(NOON + Bounds().future + MINUTE)
    assert left_of(later, erasure("user", "u")) == later
    verdict = Feedback("b", NOON + Bounds().future, "l", "f", Verdict(rating="like"))
    assert isinstance(left_of(verdict, erasure("log", "l")), FeedbackTombstone)


def test_a_document_that_is_published_again_after_its_erasure_stays() -> None:
    document = DocumentUpserted("d", "f", NOON + MINUTE, "words")
    assert left_of(document, erasure("document", "d")) == document


def test_a_document_of_one_folder_is_erased_there_alone_and_its_text_in_all_logs() -> None:
    of_f, of_g = (DocumentUpserted("d", folder, NOON, "words") for folder in ("f", "g"))
    request = erasure("document", "d", "f")
    assert left_of(of_f, request) == DocumentDeleted("d", "f", NOON)
    assert left_of(of_g, request) == of_g
    for folder_id in ("f", "g"):
        remaining = left_of(log(folder_id=folder_id), request)
        assert isinstance(remaining, ChatLog)
        assert [passage.text for passage in remaining.retrieved] == [None, "words"]


def test_a_folder_is_erased_with_its_feedback_documents_and_their_texts_elsewhere() -> None:
    request = erasure("folder", "f")
    verdict = Feedback("b", NOON, "l", "f", Verdict(rating="like"))
    assert left_of(verdict, request) == FeedbackTombstone("l", NOON, "f")
    assert left_of(DocumentUpserted("d", "f", NOON, "words"), request) == DocumentDeleted("d", "f", NOON)
    elsewhere = left_of(log(folder_id="g"), request)
    assert isinstance(elsewhere, ChatLog)
    assert [passage.text for passage in elsewhere.retrieved] == [None, "words"]


def test_an_erasure_may_be_added_while_others_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    # As by another thread, in the middle of a record.
    subjects = Erasures(map(RULES.erased, [erasure("user", "nobody")]), RULES)
    digest = erasures_module._digest

    def add_and_digest(*arguments: Any) -> str:
        monkeypatch.setattr(erasures_module, "_digest", digest)
        subjects.add(map(RULES.erased, [erasure("user", "u", "f"), erasure("document", "d", "f")]))
        return digest(*arguments)

    monkeypatch.setattr(erasures_module, "_digest", add_and_digest)
    subjects.apply(StateRecord(0, 0, log(), 100))
    assert isinstance(subjects.apply(StateRecord(0, 0, log(), 100)).event, LogTombstone)


def test_names_that_are_joined_differently_are_different_subjects() -> None:
    assert left_of(log(), erasure("user", "f u"), erasure("user", "u", "g"), erasure("log", "u")) == log()


# ── How they are kept ────────────────────────────────────────────────────────────────────────────────────────────────


class System:
    """One partition and its worker."""

    def __init__(self, table: MemoryTable | None = None, rules: ErasureRules = RULES) -> None:
        self.table = table or MemoryTable()
        self.sets = TrainingSets(self.table, Sets(), rules)
        self.confirmed: list[tuple[int, tuple[str, ...], int]] = []
        self.interval = timedelta(hours=1)

    def add(self, topic: Topic, *events: StateEvent, offset: int = 0) -> None:
        records = [StateRecord(offset + number, 0, event, 100) for number, event in enumerate(events)]
        asyncio.run(self.sets.add(0, topic, records))

    def maintain(self, at: datetime = NOON) -> int:
        sweeping = Sweeping(self.interval, self._confirm)
        return asyncio.run(maintain(self.sets, 0, at, sweeping=sweeping)).purged

    async def _confirm(self, partition: int, erasure_ids: Sequence[str], records: int) -> None:
        self.confirmed.append((partition, tuple(erasure_ids), records))

    def content(self) -> bytes:
        return b"\n".join(part for key in self.table.keys(0, b"") for part in (key, self.table.get(0, key) or b""))


def with_keys(*keys: str) -> ErasureRules:
    return ErasureRules.of(WorkerSettings(erasure_keys=SecretStr(",".join(keys)) if keys else None), Bounds())


@pytest.mark.parametrize("subject", ["user", "log", "conversation", "agent", "document", "folder"])
def test_the_state_has_no_name_of_an_erased_subject(subject: str) -> None:
    system = System()
    name = "anna@example.org"
    system.add(Topic.ERASURES, erasure(subject, name, None if subject != "document" else name))
    assert name.encode() not in system.content()
    system.maintain()
    assert system.confirmed
    assert name.encode() not in system.content()


def test_digests_depend_on_the_key() -> None:
    contents = set()
    for rules in (with_keys(), with_keys("k" * 16), with_keys("l" * 16)):
        system = System(rules=rules)
        system.add(Topic.ERASURES, erasure("user", "u"))
        contents.add(system.content())
    assert len(contents) == 3


def test_a_new_key_keeps_what_former_keys_erased() -> None:
    table, old, new = MemoryTable(), "o" * 16, "n" * 16
    for number, keys in enumerate(((), (old,), (new, old))):
        system = System(table, with_keys(*keys))
        system.add(Topic.ERASURES, erasure("user", f"u{number}"), offset=number)
    for number in range(3):
        event = log()
        event.user_id = f"u{number}"
        assert isinstance(system.sets.erasures(0).apply(StateRecord(0, 0, event, 100)).event, LogTombstone)


def test_a_worker_without_a_key_that_erasures_were_made_with_does_not_go_on() -> None:
    table = MemoryTable()
    System(table, with_keys("o" * 16)).add(Topic.ERASURES, erasure("user", "u"))
    with pytest.raises(ErasureKeyMissingError, match="erasure_keys"):
        System(table, with_keys("n" * 16)).add(Topic.CHAT_LOGS, log())


@pytest.mark.parametrize("keys", ["short", f"{'k' * 16},short", ","])
def test_a_short_key_is_refused(keys: str) -> None:
    with pytest.raises(ValueError, match="at least 16 characters"):
        WorkerSettings(erasure_keys=SecretStr(keys))


def test_a_redelivered_erasure_changes_nothing_and_an_older_one_undoes_none() -> None:
    system = System()
    later, earlier = erasure("user", "u"), erasure("user", "u", at=NOON - timedelta(days=1))
    system.add(Topic.ERASURES, later)
    content = system.content()
    system.add(Topic.ERASURES, later)
    assert system.content() == content
    system.add(Topic.ERASURES, earlier, offset=1)
    for _ in range(2):
        assert isinstance(system.sets.erasures(0).apply(StateRecord(0, 0, log(), 100)).event, LogTombstone)
        system.maintain()
    # Of one subject, what the latest covers is not kept.
    assert len(list(system.table.keys(0, b"e|"))) == 1


# ── When they are applied to what is stored ──────────────────────────────────────────────────────────────────────────


def test_one_erasure_a_minute_is_one_sweep_an_hour() -> None:
    system = System()
    system.add(Topic.CHAT_LOGS, log())
    with mock.patch.object(system.table, "reclaim") as reclaim:
        for minute in range(180):
            at = NOON + minute * MINUTE
            system.add(Topic.ERASURES, ErasureRequested(f"e{minute}", at, "user", f"u{minute}"), offset=minute)
            system.maintain(at)
    assert reclaim.call_count == 3
    assert [len(ids) for _, ids, _ in system.confirmed] == [1, 60, 60]


@pytest.mark.parametrize(
    ("interval", "swept", "requested"),
    [
        # Across midnight, when the daily marker is written, and before it with nothing to do then.
        (timedelta(hours=1), timedelta(hours=11, minutes=10), timedelta(hours=11, minutes=11)),
        (timedelta(hours=1), timedelta(hours=11, minutes=10), timedelta(hours=12, minutes=5)),
        (timedelta(hours=23), timedelta(0), timedelta(hours=1)),
        (timedelta(days=2), timedelta(0), timedelta(hours=1)),
        (timedelta(days=7), timedelta(0), timedelta(hours=1)),
    ],
)
def test_an_erasure_is_applied_once_the_interval_has_passed_whatever_the_day(
    interval: timedelta, swept: timedelta, requested: timedelta
) -> None:
    system = System()
    system.interval = interval
    system.add(Topic.CHAT_LOGS, log(question="secret"))
    system.add(Topic.ERASURES, erasure("user", "nobody"))
    system.maintain(NOON + swept)
    system.add(Topic.ERASURES, erasure("user", "u"), offset=1)
    at, step = NOON + requested, interval / 60
    while len(system.confirmed) == 1 and at <= NOON + swept + 2 * interval:
        at += step
        system.maintain(at)
    assert b"secret" not in system.content()
    assert NOON + swept + interval <= at < NOON + swept + interval + step


def test_what_is_erased_is_in_no_snapshot_before_the_sweep() -> None:
    system = System()
    system.add(Topic.ERASURES, erasure("user", "nobody"))
    system.maintain()
    system.add(Topic.CHAT_LOGS, log())
    system.add(Topic.ERASURES, erasure("user", "u"), offset=1)
    assert system.maintain(NOON + MINUTE) == 0
    view = system.sets.view(0)
    records = [view.erasures().apply(record) for record in view.records(view.segments["f"])]
    assert [record.event for record in records] == [LogTombstone("l", NOON, "f")]
    assert system.maintain(NOON + timedelta(hours=1)) == 1


def test_an_erasure_is_confirmed_once_it_is_applied_and_counted() -> None:
    system = System()
    system.add(Topic.CHAT_LOGS, log(question="secret"))
    system.add(Topic.ERASURES, erasure("user", "u"), ErasureRequested("other", NOON, "user", "u"))
    assert system.confirmed == []
    system.maintain()
    assert system.confirmed == [(0, ("e", "other"), 1)]
    assert b"secret" not in system.content()
    for hours in range(48):
        system.maintain(NOON + timedelta(hours=hours))
    assert len(system.confirmed) == 1


def test_an_erasure_that_is_confirmed_has_reached_what_was_being_written() -> None:
    async def scenario() -> None:
        # A log is read while the erasure is on its way to the changelog, and comes after it there.
        erasing, adding = asyncio.Event(), asyncio.Event()
        write = system.table.write

        async def write_late(partition: int, changes: Changes) -> bool:
            is_erasure = any(key.startswith(b"e|") for key in changes)
            await (erasing if is_erasure else adding).wait()
            return await write(partition, changes)

        with mock.patch.object(system.table, "write", write_late):
            erased = asyncio.create_task(system.sets.add(0, Topic.ERASURES, [StateRecord(0, 0, request, 100)]))
            await asyncio.sleep(0)
            added = asyncio.create_task(system.sets.add(0, Topic.CHAT_LOGS, [StateRecord(0, 0, secret, 100)]))
            await asyncio.sleep(0)
            erasing.set()
            await erased
        await maintain(system.sets, 0, NOON, sweeping=Sweeping(system.interval, system._confirm))
        adding.set()
        await added

    system, request, secret = System(), erasure("user", "u"), log(question="secret")
    system.add(Topic.ERASURES, erasure("user", "nobody"))
    system.maintain(NOON - timedelta(days=1))
    system.add(Topic.CHAT_LOGS, log(question="first"))
    asyncio.run(scenario())
    assert [ids for _, ids, _ in system.confirmed] == [("e",), ("e",)]
    assert b"secret" not in system.content()


@pytest.mark.parametrize("fails", ["confirm", "write"])
def test_a_sweep_that_was_cut_short_is_repeated_and_confirmed(fails: str) -> None:
    system = System()
    system.add(Topic.ERASURES, erasure("user", "u"))
    failing = mock.patch.object(*((system, "_confirm") if fails == "confirm" else (system.table, "write")))
    with failing as call:
        call.side_effect = ConnectionError
        with pytest.raises(ConnectionError):
            system.maintain()
    system.sets.invalidate()
    system.maintain()
    assert system.confirmed[-1:] == [(0, ("e",), 0)]
    system.maintain(NOON + timedelta(hours=2))
    assert len(system.confirmed) == (1 if fails == "confirm" else 2)


def test_the_marker_of_a_clock_that_was_ahead_delays_nothing() -> None:
    system = System()
    system.add(Topic.ERASURES, erasure("user", "nobody"))
    system.maintain(NOON + timedelta(days=365))
    system.add(Topic.ERASURES, erasure("user", "u"), offset=1)
    system.maintain(NOON)
    assert len(system.confirmed) == 2
