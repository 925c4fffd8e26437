"""Which local databases are removed, to be recovered from the changelog, and which are not."""

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest
from faust.types import TP

from foldtune.settings import WorkerSettings
from streams.errors import StoreInUseError, StoreOutdatedError
from streams.metrics import LOST_RECORDS, REMOVED_STORES
from streams.partitions import local_store
from streams.partitions.broker_reader import BrokerReader
from streams.partitions.changelog_table import ChangelogTable
from streams.partitions.local_store import (
    check_before_recovery,
    exports_folder,
    is_damage,
    open_store_folder,
    store_folder,
)
from streams.partitions.restoration import LINEAGE_KEY

KEYS = [b"k%03d" % number for number in range(300)]
IDS = {"foldtune-training-sets-changelog": "1", "foldtune-requests-changelog": "2"}


class Worker:
    """One life of a worker that owns partition 0."""

    def __init__(self, folder: Path) -> None:
        self.app = faust.App("unit", store="rocksdb://", datadir=str(folder))
        self.table = ChangelogTable(self.app, "sets", 1, cast(BrokerReader, None))
        cast(Any, self.table).owns = lambda _: True
        self.faust_table = cast(Any, self.app.tables)["sets"]
        self.store = self.faust_table.data
        self.store.path.mkdir(parents=True, exist_ok=True)
        self.database = self.store.partition_path(0)
        self.changelog = TP(self.faust_table.changelog_topic_name, 0)

    def fill(self) -> None:
        database = self.store._db_for_partition(0)
        for key in KEYS:
            database.put(key, key * 100)
        self.store.set_persisted_offset(self.changelog, 299)
        database.flush()

    def end(self) -> None:
        database = self.store._dbs.pop(0, None)
        if database is not None:
            # Closing reads what is damaged.
            with suppress(Exception):
                database.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def removed(reason: str) -> float:
    return cast(float, REMOVED_STORES.labels(reason)._value.get())


@pytest.mark.parametrize(
    ("files", "damage"),
    [
        ("*.sst", truncate),
        ("*.sst", lambda path: path.write_bytes(b"")),
        ("*.sst", Path.unlink),
        ("MANIFEST*", lambda path: path.write_bytes(b"")),
        ("MANIFEST*", Path.unlink),
        ("CURRENT", lambda path: path.write_bytes(b"")),
    ],
)
def test_a_database_that_cannot_be_opened_is_removed_and_is_empty(
    tmp_path: Path, files: str, damage: Callable[[Path], object]
) -> None:
    worker = Worker(tmp_path)
    worker.fill()
    worker.end()
    damage(next(worker.database.glob(files)))
    before = removed("damaged")
    worker = Worker(tmp_path)
    assert worker.store.persisted_offset(worker.changelog) is None
    assert worker.table.get(0, KEYS[0]) is None
    assert removed("damaged") == before + 1
    # Nothing is kept of it: a copy would hold erased text.
    assert not list(tmp_path.rglob("*.removed"))
    worker.fill()
    worker.end()
    assert Worker(tmp_path).table.get(0, KEYS[0])
    assert removed("damaged") == before + 1


@pytest.mark.parametrize(
    "read",
    [
        lambda worker: [worker.table.get(0, key) for key in KEYS],
        lambda worker: list(worker.table.keys(0, b"k")),
    ],
)
def test_a_damaged_block_is_an_error_and_the_next_start_removes_the_database(
    tmp_path: Path, read: Callable[[Worker], object]
) -> None:
    worker = Worker(tmp_path)
    worker.fill()
    worker.end()
    flip(next(worker.database.glob("*.sst")))
    worker = Worker(tmp_path)
    before = removed("damaged")
    with pytest.raises(Exception, match="Corruption"):
        read(worker)
    worker.end()
    assert removed("damaged") == before
    worker = Worker(tmp_path)
    assert worker.store.persisted_offset(worker.changelog) is None
    worker.fill()
    worker.end()
    assert len(list(Worker(tmp_path).table.keys(0, b"k"))) == len(KEYS)
    assert removed("damaged") == before + 1


def test_a_locked_database_is_not_damaged(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.fill()
    before = removed("damaged")
    with pytest.raises(Exception, match=r"(?i)lock"):
        Worker(tmp_path).table.get(0, KEYS[0])
    assert removed("damaged") == before
    assert worker.table.get(0, KEYS[0])


@pytest.mark.parametrize(
    "text",
    [
        "IO error: No space left on device: While appending to file: /x/000001.log: No space left on device",
        "Corruption: IO error: While open a file for random read: /x/1.sst: Too many open files",
        "IO error: While pread offset 0 len 10: /x/1.sst: Input/output error",
        "IO error: While lock file: /x/LOCK: Resource temporarily unavailable",
    ],
)
def test_what_the_machine_lacks_is_not_damage(text: str) -> None:
    assert not is_damage(Exception(text))


@pytest.mark.parametrize(("end", "kept"), [(300, True), (299, False), (0, False)])
def test_a_database_ahead_of_its_changelog_is_removed(tmp_path: Path, end: int, kept: bool) -> None:
    worker = Worker(tmp_path)
    worker.fill()
    before = removed("ahead")
    built: list[dict[TP, int | None]] = []

    async def highwaters(*_: TP) -> dict[TP, int]:
        return {worker.changelog: end}

    async def earliest(*_: TP) -> dict[TP, int]:
        return {worker.changelog: 0}

    async def build_offsets(_: Any, __: set[TP], destination: dict[TP, int | None], ___: str) -> None:
        built.append(dict(destination))

    recovery = SimpleNamespace(_build_offsets=build_offsets, tp_to_table={worker.changelog: worker.faust_table})
    check_before_recovery(recovery)
    offsets = {worker.changelog: worker.store.persisted_offset(worker.changelog)}
    consumer = SimpleNamespace(highwaters=highwaters, earliest_offsets=earliest)
    asyncio.run(cast(Any, recovery)._build_offsets(consumer, {worker.changelog}, offsets, "active"))
    assert built == [{worker.changelog: 299 if kept else None}]
    assert worker.store.persisted_offset(worker.changelog) == (299 if kept else None)
    assert removed("ahead") == before + (not kept)


@pytest.mark.parametrize(
    ("first", "filled", "lost"), [(0, False, 0), (5, False, 5), (300, True, 0), (301, True, 1), (310, True, 10)]
)
def test_a_changelog_that_has_lost_its_beginning_is_told_once(
    tmp_path: Path, first: int, filled: bool, lost: int
) -> None:
    worker = Worker(tmp_path)
    if filled:
        worker.fill()
    counter = LOST_RECORDS.labels("sets-changelog", "expired")
    before = counter._value.get()

    async def offsets(value: int) -> dict[TP, int]:
        return {worker.changelog: value}

    async def build_offsets(*_: Any) -> None: ...

    recovery = SimpleNamespace(_build_offsets=build_offsets, tp_to_table={worker.changelog: worker.faust_table})
    check_before_recovery(recovery)
    consumer = SimpleNamespace(highwaters=lambda *_: offsets(900), earliest_offsets=lambda *_: offsets(first))
    for _ in range(2):
        asyncio.run(cast(Any, recovery)._build_offsets(consumer, {worker.changelog}, {}, "active"))
    assert counter._value.get() - before == lost


def test_a_recovery_that_a_rebalance_begins_again_meets_all_that_the_changelog_has_been(tmp_path: Path) -> None:
    worker = Worker(tmp_path)

    async def highwaters(*_: TP) -> dict[TP, int]:
        return {worker.changelog: 2}

    async def earliest(*_: TP) -> dict[TP, int]:
        return {worker.changelog: 0}

    async def build_offsets(*_: Any) -> None: ...

    recovery = SimpleNamespace(_build_offsets=build_offsets, tp_to_table={worker.changelog: worker.faust_table})
    check_before_recovery(recovery)
    build = cast(Any, recovery)._build_offsets
    # Faust's offset of a recovery that has not applied anything yet.
    consumer = SimpleNamespace(highwaters=highwaters, earliest_offsets=earliest)
    asyncio.run(build(consumer, {worker.changelog}, {worker.changelog: -1}, "active"))

    def apply(offset: int, lineage: bytes) -> None:
        message = SimpleNamespace(tp=worker.changelog, partition=0, offset=offset, key=LINEAGE_KEY, value=lineage)
        worker.store.apply_changelog_batch([SimpleNamespace(message=message)], None, None)

    apply(0, b"first 0")
    apply(1, b"second 0")
    apply(2, b"second 0")
    with pytest.raises(StoreOutdatedError):
        apply(3, b"third 0")


def opened(settings: WorkerSettings, **ids: str) -> Path:
    open_store_folder(settings, IDS | {f"foldtune-{name}-changelog": value for name, value in ids.items()}).close()
    return store_folder(settings) / "v1" / "tables" / "sets-0.db"


@pytest.mark.parametrize("app_id", ["foldtune", ".", "..", "v1"])
def test_a_store_is_found_again_by_its_app_id_and_its_changelogs(tmp_path: Path, app_id: str) -> None:
    settings = WorkerSettings(app_id=app_id, data_dir=tmp_path / "data")
    database = opened(settings)
    assert database.resolve().is_relative_to((tmp_path / "data").resolve())
    database.mkdir(parents=True)
    opened(settings)
    assert database.exists()
    # Brokers that tell no ids, for example while one is upgraded.
    open_store_folder(settings, {}).close()
    opened(settings)
    assert database.exists()
    opened(settings, requests="3")
    assert not database.exists()


def test_unknown_changelogs_are_other_ones(tmp_path: Path) -> None:
    settings = WorkerSettings(data_dir=tmp_path)
    database = opened(settings)
    database.mkdir(parents=True)
    (store_folder(settings) / "changelogs.json").write_text(json.dumps(IDS)[:-5])
    opened(settings)
    assert not database.exists()


def test_a_store_that_was_away_for_longer_than_deletes_are_kept_is_recovered_from_the_beginning(tmp_path: Path) -> None:
    settings = WorkerSettings(data_dir=tmp_path)
    stale = opened(settings)
    fresh = stale.with_name("sets-1.db")
    for database, hours in ((stale, 25), (fresh, 23)):
        database.mkdir(parents=True)
        (database / "000004.log").touch()
        at = time.time() - hours * 3600
        for path in (database / "000004.log", database):
            os.utime(path, (at, at))
    opened(settings)
    assert (stale.exists(), fresh.exists()) == (False, True)


def test_a_start_on_a_full_disk_leaves_the_stores_to_the_next_one(tmp_path: Path) -> None:
    settings = WorkerSettings(data_dir=tmp_path)
    database = opened(settings)
    database.mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            opened(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    opened(settings)
    assert database.exists()


def test_stores_of_another_app_id_and_of_earlier_releases_are_removed(tmp_path: Path) -> None:
    settings = WorkerSettings(app_id="other", data_dir=tmp_path)
    other = opened(settings)
    # Texts, with no databases beside them.
    exports = exports_folder(WorkerSettings(app_id="third", data_dir=tmp_path))
    exports.mkdir(parents=True)
    for name in ("lock", "changelogs.json"):
        (exports.parent / name).touch()
    (tmp_path / "app-file").touch()
    earlier = tmp_path / "v1" / "tables" / "sets-0.db"
    foreign = tmp_path / "app-data" / "file"
    for folder in (other, earlier, foreign):
        folder.mkdir(parents=True)
    opened(WorkerSettings(data_dir=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app-data", "app-file", "app-foldtune"]
    assert foreign.exists()


@pytest.mark.parametrize(
    "name", ["v1/index.html", "v1/tables/index.html", "app-web/v1/index.html", "app-web/v1/tables"]
)
def test_what_is_not_ours_in_the_data_dir_stays(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text("of somebody else")
    opened(WorkerSettings(data_dir=tmp_path))
    assert file.exists()


def test_stores_of_an_installation_with_another_topic_prefix_stay(tmp_path: Path) -> None:
    stores = {}
    for prefix in ("", "a-", "b-"):
        settings = WorkerSettings(app_id=f"{prefix}foldtune", data_dir=tmp_path)
        open_store_folder(settings, IDS, prefix).close()
        stores[prefix] = store_folder(settings) / "v1" / "tables" / "sets-0.db"
        stores[prefix].mkdir(parents=True)
    next_of_a = WorkerSettings(app_id="a-next", data_dir=tmp_path)
    open_store_folder(next_of_a, IDS, "a-").close()
    assert {prefix: store.exists() for prefix, store in stores.items()} == {"": True, "a-": False, "b-": True}


def test_a_folder_that_another_process_uses_is_refused_and_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = WorkerSettings(data_dir=tmp_path)
    database = opened(settings)
    database.mkdir(parents=True)
    monkeypatch.setattr(local_store, "_LOCK_SECONDS", 0.0)
    lock = store_folder(settings) / "lock"
    hold = (
        f"import fcntl\nfile = open({str(lock)!r}, 'ab')\nfcntl.lockf(file, fcntl.LOCK_EX)\nprint(flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(StoreInUseError, match="app-foldtune"):
            opened(settings, requests="3")
        opened(WorkerSettings(app_id="other", data_dir=tmp_path))
        holder.communicate(b"\n")
    assert database.exists()
