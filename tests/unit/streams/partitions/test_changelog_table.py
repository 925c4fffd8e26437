"""Which changelog records from Faust a table applies, and what it leaves on the disk of who is not the owner."""

import asyncio
import os
import secrets
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest
from faust.types import TP

from streams.partitions.broker_reader import BrokerReader
from streams.partitions.changelog_table import ChangelogTable


def changelog_event(table: Any, partition: int, offset: int, value: bytes | None, key: bytes = b"k") -> Any:
    message = SimpleNamespace(
        tp=TP(table.changelog_topic_name, partition), partition=partition, offset=offset, key=key, value=value
    )
    return SimpleNamespace(message=message)


def test_late_changelog_records_do_not_undo_writes_of_an_owned_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = faust.App("unit", store="rocksdb://", datadir=str(tmp_path))
    changelog_table = ChangelogTable(app, "sets", 2, cast(BrokerReader, None))
    table = cast(Any, app.tables)["sets"]
    Path(str(table.data.path)).mkdir(parents=True, exist_ok=True)
    # A standby, and a partition that is being recovered, applies every record.
    table.apply_changelog_batch([changelog_event(table, 0, 7, b"newer"), changelog_event(table, 1, 7, b"newer")])
    monkeypatch.setattr(changelog_table, "owns", lambda partition: partition == 1)
    table.apply_changelog_batch([changelog_event(table, 0, 8, b"late"), changelog_event(table, 1, 5, b"late")])
    assert (changelog_table.get(0, b"k"), changelog_table.get(1, b"k")) == (b"late", b"newer")
    assert table.persisted_offset(TP(table.changelog_topic_name, 1)) == 7


MARKER = secrets.token_urlsafe(24).encode()


class Assigned:
    """A table, partition 0 of which is a standby's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        app = faust.App("unit", store="rocksdb://", datadir=str(folder), topic_partitions=2)
        self.table = ChangelogTable(app, "sets", 2, cast(BrokerReader, None), b"swept")
        self.faust: Any = cast(Any, app.tables)["sets"]
        self.path = Path(str(self.faust.data.path))
        self.path.mkdir(parents=True, exist_ok=True)
        self.standbys = {TP(self.faust.changelog_topic_name, 0)}
        monkeypatch.setattr(app.assignor, "assigned_actives", set)
        monkeypatch.setattr(app.assignor, "assigned_standbys", lambda: self.standbys)

    def apply(self, *changes: tuple[bytes, bytes | None]) -> None:
        events = [changelog_event(self.faust, 0, at, value, key) for at, (key, value) in enumerate(changes)]
        self.faust.apply_changelog_batch(events)

    def marker_on_disk(self) -> bool:
        return any(MARKER in path.read_bytes() for path in self.path.rglob("*") if path.is_file())


def test_a_standby_removes_from_its_disk_what_the_owner_has_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assigned = Assigned(tmp_path, monkeypatch)
    assigned.apply((b"k", MARKER))
    assigned.table.reclaim(0)
    assigned.apply((b"k", None))
    asyncio.run(assigned.table.reclaim_standbys())
    assert assigned.marker_on_disk()
    assigned.apply((b"swept", b"now"))
    asyncio.run(assigned.table.reclaim_standbys())
    assert not assigned.marker_on_disk()


def test_a_standby_does_not_wait_for_further_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Assigned(tmp_path, monkeypatch).faust.standby_buffer_size == 1


def test_the_database_of_a_partition_that_was_lost_a_day_ago_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assigned = Assigned(tmp_path, monkeypatch)
    assigned.apply((b"k", MARKER))
    path = assigned.faust.data.partition_path(0)
    assigned.faust.data.revoke_partitions(assigned.faust, assigned.standbys)

    def age(hours: float) -> None:
        moment = time.time() - hours * 3600
        for file in (*path.iterdir(), path):
            os.utime(file, (moment, moment))

    age(23)
    assigned.standbys.clear()
    assigned.table.remove_lost()
    assert path.is_dir()
    age(25)
    assigned.standbys.add(TP(assigned.faust.changelog_topic_name, 0))
    assigned.table.remove_lost()
    assert path.is_dir()
    assigned.standbys.clear()
    assigned.table.remove_lost()
    assert not path.exists()
