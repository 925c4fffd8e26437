"""A changelog that has lost its end gets the owner's state again, and no store of its former self is taken for it."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest
from faust.types import TP
from structlog.testing import capture_logs

from foldtune.topics import Topic
from streams.errors import PartitionLostError
from streams.metrics import REMOVED_STORES, RESTORED_CHANGELOGS
from streams.partitions.broker_reader import BrokerReader
from streams.partitions.changelog_table import ChangelogTable, Changes
from streams.partitions.positions import History, Lost, Position, position_changes
from streams.partitions.restoration import LINEAGE_KEY, POSITION_PREFIXES, digest, missing


class DiedError(Exception):
    """In place of the end of the process."""


class EndedError(Exception):
    """In place of an end of the process that the worker itself wants, with its exit code."""


class Changelog:
    """One partition of a changelog topic, which loses its end."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []
        # Records that it takes before the worker dies.
        self.lives_for = 1_000_000

    async def append(self, _: int, *changes: Changes) -> list[int]:
        first = len(self.records)
        for one in changes:
            for change in sorted(one.items(), key=lambda change: change[1] is None):
                self.lives_for -= 1
                if self.lives_for < 0:
                    raise DiedError
                self.records.append(change)
        return list(range(first, len(self.records)))

    async def whole(self, *_: object) -> AsyncIterator[Any]:
        for offset, (key, value) in enumerate(self.records):
            yield SimpleNamespace(offset=offset, key=key, value=value)

    def state(self) -> dict[bytes, bytes]:
        return {key: value for key, value in dict(self.records).items() if value is not None}


class Worker:
    """The owner of partition 0, with a real store; or one that owns nothing and recovers."""

    def __init__(self, folder: Path, changelog: Changelog) -> None:
        app = faust.App("unit", store="rocksdb://", datadir=str(folder))
        app.conf.broker_session_timeout = 0
        self.table = ChangelogTable(app, "sets", 1, cast(BrokerReader, changelog))
        self.generation: int | None = 1
        cast(Any, self.table).owned_generation = lambda _: self.generation
        cast(Any, self.table)._append = changelog.append
        self.faust_table = cast(Any, app.tables)["sets"]
        self.store = self.faust_table.data
        self.store.path.mkdir(parents=True, exist_ok=True)
        self.changelog, self.tp = changelog, TP(self.faust_table.changelog_topic_name, 0)

    def write(self, **changes: bytes | None) -> bool:
        return asyncio.run(self.table.write(0, {key.encode(): value for key, value in changes.items()}))

    def state(self) -> dict[bytes, bytes]:
        items = cast(Any, self.store._db_for_partition(0)).items()
        return {key: value for key, value in items if key != self.store.offset_key}

    @property
    def checkpoint(self) -> int | None:
        return cast(int | None, self.store.persisted_offset(self.tp))

    def recover(self, end: int) -> None:
        """As Faust does, from the checkpoint on."""
        self.generation, offset = None, self.checkpoint
        self.store.resume(0, offset, end)
        self.follow((-1 if offset is None else offset) + 1, end)

    def follow(self, first: int, end: int) -> None:
        """Apply the changelog's records, as a standby does."""
        for at in range(first, end):
            key, value = self.changelog.records[at]
            message = SimpleNamespace(tp=self.tp, partition=0, offset=at, key=key, value=value)
            self.faust_table.apply_changelog_batch([SimpleNamespace(message=message)])


@pytest.fixture(autouse=True)
def _raising_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(os, "_exit", end)


def history(worker: Worker) -> None:
    """Two keys that are merged into a third, and others; each followed by where the topic is continued."""
    for number in range(4):
        worker.write(**{f"s|{number}": b"%d" % number})
        asyncio.run(worker.table.write(0, position_changes(Topic.CHAT_LOGS, Position(number + 1, 0))))
    worker.write(**{"s|0": None, "s|1": None, "s|0-1": b"0 1"})


def restored() -> float:
    return cast(float, RESTORED_CHANGELOGS.labels("sets")._value.get())


@pytest.mark.parametrize("end", range(14))
def test_a_changelog_that_has_lost_its_end_gets_the_owners_state_again(tmp_path: Path, end: int) -> None:
    changelog = Changelog()
    worker = Worker(tmp_path, changelog)
    history(worker)
    assert len(changelog.records) == 15
    before, state = restored(), worker.state()
    # Deleted or truncated; what merges two keys, and their deletion, are gone in most cases.
    del changelog.records[end:]
    with capture_logs() as logs:
        assert worker.write(**{"s|new": b"new"})
    assert {key: value for key, value in worker.state().items() if key != LINEAGE_KEY} == state | {b"s|new": b"new"}
    assert changelog.state() == worker.state()
    assert changelog.records[-1][0] == LINEAGE_KEY
    assert worker.checkpoint == len(changelog.records) - 1
    assert [(log["event"], log["log_level"]) for log in logs] == [
        ("changelog has lost its end, writing it again", "error"),
        ("changelog has the state again", "warning"),
    ]
    assert restored() == before + 1
    # As ever after it.
    assert worker.write(**{"s|newer": b"newer"})
    assert changelog.state() == worker.state()
    assert restored() == before + 1


POSITION = position_changes(Topic.CHAT_LOGS, Position(4, 0))


# Not before what a write that notices changes is undone: by the next record.
@pytest.mark.parametrize(
    ("noticing", "first"),
    [({b"s|new": b"new"}, 1), (POSITION, 3), ({b"s|new": b"new", **POSITION}, 4), ({b"s|0": None}, 2)],
)
def test_a_worker_that_dies_meanwhile_leaves_a_changelog_that_is_not_continued_behind_what_it_lacks(
    tmp_path: Path, noticing: Changes, first: int
) -> None:
    whole = 0
    for lives_for in range(first, 24):
        changelog = Changelog()
        worker = Worker(tmp_path / str(lives_for), changelog)
        history(worker)
        state = worker.state()
        del changelog.records[3:]
        changelog.lives_for = lives_for
        try:
            asyncio.run(worker.table.write(0, noticing))
        except DiedError:
            # The store is removed as one that is ahead.
            assert cast(int, worker.checkpoint) > 1 << 60
        recovered = changelog.state()
        continued = recovered.get(b"n|chat-logs", b"0").split()[0]
        records = {record for key, value in recovered.items() if key.startswith(b"s|") for record in value.split()}
        assert records >= {b"%d" % number for number in range(int(continued))}
        whole += recovered.items() >= state.items()
    assert 0 < whole < 24 - first


def test_a_topic_is_continued_where_the_changelog_without_its_end_has_it(tmp_path: Path) -> None:
    changelog = Changelog()
    worker = Worker(tmp_path, changelog)
    history(worker)
    del changelog.records[6:]
    generations = iter([1, 1])
    cast(Any, worker.table).owned_generation = lambda _: next(generations, None)
    shifted = Position(4, 1, History(topic_id="id", shift=7))
    with pytest.raises(PartitionLostError):
        asyncio.run(worker.table.write(0, position_changes(Topic.CHAT_LOGS, shifted)))
    held = changelog.state()
    assert (held[b"n|chat-logs"], held[b"o|chat-logs"]) == (b"2 0", b"2")


def test_a_changelog_without_a_position_has_the_topic_read_from_its_beginning(tmp_path: Path) -> None:
    changelog = Changelog()
    worker = Worker(tmp_path, changelog)
    history(worker)
    changelog.records.clear()
    generations = iter([1, 1])
    cast(Any, worker.table).owned_generation = lambda _: next(generations, None)
    lost = History(topic_id="an id", shift=7, lost={"expired": Lost(3, 5)})
    with pytest.raises(PartitionLostError):
        asyncio.run(worker.table.write(0, position_changes(Topic.CHAT_LOGS, Position(4, 1, lost))))
    assert changelog.state() == position_changes(Topic.CHAT_LOGS, Position(0, 0, lost))


def test_a_store_whose_checkpoint_a_restoration_has_passed_is_no_good_once_the_partition_is_lost(
    tmp_path: Path,
) -> None:
    changelog = Changelog()
    worker = Worker(tmp_path, changelog)
    history(worker)
    # Two records are lost; the write has three, and ends above the checkpoint.
    del changelog.records[13:]
    generations = iter([1, 1])
    cast(Any, worker.table).owned_generation = lambda _: next(generations, None)
    with pytest.raises(PartitionLostError):
        worker.write(**{"s|4": b"4", "s|5": b"5", "s|6": b"6"})
    assert len(changelog.records) == 16
    # It is removed as one that is ahead.
    assert cast(int, worker.checkpoint) >= len(changelog.records)


def test_a_zombie_restores_nothing(tmp_path: Path) -> None:
    changelog = Changelog()
    worker = Worker(tmp_path, changelog)
    history(worker)
    del changelog.records[3:]
    generations = iter([1, 1, 1])
    cast(Any, worker.table).owned_generation = lambda _: next(generations, 2)
    with pytest.raises(PartitionLostError):
        worker.write(**{"s|new": b"new"})
    assert len(changelog.records) == 4


@pytest.mark.parametrize("offset", [3, 7, 11, 12, 13, 14])
@pytest.mark.parametrize("more", [4, 10])
def test_a_store_of_the_changelogs_former_self_is_removed_and_recovered(tmp_path: Path, offset: int, more: int) -> None:
    changelog = Changelog()
    owner, other = Worker(tmp_path / "owner", changelog), Worker(tmp_path / "other", changelog)
    history(owner)
    other.recover(offset + 1)
    del changelog.records[2:]
    owner.write(**{"s|new": b"new"})
    for number in range(more):
        # Ends with a record that is deleted.
        owner.write(**{f"s|more {number}": b"more", f"s|more {number - 1}": None})
    before = REMOVED_STORES.labels("outdated")._value.get()
    # Faust would only log an error.
    with pytest.raises(EndedError, match="70"):
        other.recover(len(changelog.records))
    other.store._dbs.pop(0).close()
    again = Worker(tmp_path / "other", changelog)
    again.recover(len(changelog.records))
    assert REMOVED_STORES.labels("outdated")._value.get() == before + 1
    assert again.state() == owner.state() == changelog.state()
    # Of the same lineage from here on.
    owner.write(**{"s|last": b"last"})
    again.recover(len(changelog.records))
    assert again.state() == owner.state()


@pytest.mark.parametrize("restored_before", [False, True])
def test_a_standby_that_began_from_nothing_does_not_pass_over_a_restoration(
    tmp_path: Path, restored_before: bool
) -> None:
    changelog = Changelog()
    owner, standby = Worker(tmp_path / "owner", changelog), Worker(tmp_path / "standby", changelog)
    history(owner)
    if restored_before:
        del changelog.records[9:]
        owner.write(**{"s|once": b"once"})
    # Lineages of the past are none that it has missed.
    standby.recover(len(changelog.records))
    at = len(changelog.records)
    owner.write(**{"s|more": b"more"})
    standby.follow(at, len(changelog.records))
    assert standby.state() == owner.state()
    at = len(changelog.records)
    del changelog.records[5:]
    for number in range(30):
        owner.write(**{f"s|more {number}": b"more"})
    with pytest.raises(EndedError, match="70"):
        standby.follow(at, len(changelog.records))
    # The next start has it all.
    standby.store._dbs.pop(0).close()
    again = Worker(tmp_path / "standby", changelog)
    again.recover(len(changelog.records))
    assert again.state() == owner.state()


def test_where_topics_are_continued_is_written_last() -> None:
    position = dict(position_changes(Topic.CHAT_LOGS, Position(1, 0)))
    assert all(key.startswith(POSITION_PREFIXES) for key in position)
    state = {b"z": b"1", b"same": b"2", b"other": b"3", **cast(dict[bytes, bytes], position)}
    changelog = {b"same": digest(b"2"), b"other": digest(b"4"), b"gone": digest(b"5")}
    assert missing(state.items(), changelog) == ([b"z", b"other"], [b"gone"], list(position))
    assert not any(missing(state.items(), {key: digest(value) for key, value in state.items()}))
