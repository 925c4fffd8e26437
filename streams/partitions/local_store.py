"""The tables' RocksDB databases on this machine, one for each partition.

They are derived from the changelogs. So a database that is not a prefix of its changelog, or not readable, is removed,
and recovered from the changelog: each says so once, in the log and by ``foldtune_removed_stores``. The databases lie
below a folder of the app id, together with the ids that the brokers gave to its changelogs: a topic that is deleted and
made anew gets another id.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import structlog
from faust.stores import STORES
from faust.stores.rocksdb import Store
from faust.types import TP

from foldtune.settings import WorkerSettings
from streams.errors import StoreInUseError, StoreOutdatedError
from streams.metrics import LOST_RECORDS, REMOVED_STORES
from streams.partitions.restoration import LINEAGE_KEY

_log = structlog.get_logger()
STORE_SCHEME = "foldtune"
STORES.aliases[STORE_SCHEME] = f"{__name__}:LocalStore"

_DATABASES, _LOCK, _CHANGELOGS, _TOPIC_PREFIX = "v1", "lock", "changelogs.json", "topic-prefix"
_DAMAGED, _REMOVED = ".damaged", ".removed"
# Why a database is removed, beside what RocksDB says.
_OUTDATED = "outdated"
# For how long the brokers keep what says that a key was deleted, at least (delete.retention.ms).
_FORGOTTEN_SECONDS = 24 * 3600.0
# The former worker on this folder may still be ending, which takes it 8 s.
_LOCK_SECONDS = 15.0
# RocksDB may call it corruption when it cannot open a file.
_SURROUNDINGS = tuple(
    os.strerror(code)
    for code in (
        errno.EACCES,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
    )
)


def store_folder(worker: WorkerSettings) -> Path:
    """The folder of an app id's databases."""
    # With a prefix: an app id may be "..".
    return worker.data_dir.absolute() / f"app-{worker.app_id}"


def exports_folder(worker: WorkerSettings) -> Path:
    """Where exports write their files, beside the databases: both hold texts."""
    return store_folder(worker) / "exports"


def open_store_folder(worker: WorkerSettings, changelogs: Mapping[str, str], topic_prefix: str = "") -> IO[bytes]:
    """Lock the folder for this process, and remove databases that are not of these changelogs, given with their ids.

    Brokers before Kafka 2.8 give none. Databases of installations with another ``topic_prefix`` stay. The lock ends
    with the returned file.

    Raises:
        StoreInUseError: another process uses the folder.
    """
    folder = store_folder(worker)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        _remove_outdated(folder, changelogs, topic_prefix)
    except BaseException:
        lock.close()
        raise
    return lock


def _remove_outdated(folder: Path, changelogs: Mapping[str, str], topic_prefix: str) -> None:
    for other in folder.parent.glob("app-*"):
        # The data_dir may be one where others have folders of such names.
        is_ours = (other / _LOCK).exists() and (other / _CHANGELOGS).exists()
        if is_ours and other != folder and _prefix_of(other) in {None, topic_prefix} and not _in_use(other):
            _remove(other, "of another app id")
    # Before folders had an app id in their names, they were the data_dir itself.
    earlier = folder.parent / _DATABASES
    if _has_databases_only(earlier) and not _in_use(folder.parent):
        _remove(earlier, "of an earlier release")
    known = _known(folder / _CHANGELOGS)
    if (folder / _DATABASES).exists() and (
        known is None or any(known.get(name, found) != found for name, found in changelogs.items())
    ):
        REMOVED_STORES.labels("deleted").inc()
        _remove(folder / _DATABASES, "of changelogs that were deleted")
    for database in (folder / _DATABASES / "tables").glob("*.db"):
        # The changelog may no longer tell what was deleted since, an erased text for example.
        if _last_write(database) < time.time() - _FORGOTTEN_SECONDS:
            _log.info("store of long ago removed, recovering from the changelog", folder=str(database))
            shutil.rmtree(database)
    for leftover in (folder / _DATABASES).rglob(f"*{_REMOVED}"):
        shutil.rmtree(leftover, ignore_errors=True)
    _write(folder / _TOPIC_PREFIX, topic_prefix)
    _write(folder / _CHANGELOGS, json.dumps((known or {}) | dict(changelogs)))


def _has_databases_only(folder: Path) -> bool:
    return (
        (tables := folder / "tables").is_dir()
        and list(folder.iterdir()) == [tables]
        and all(re.search(r"\.db(\.\w+)?$", path.name) for path in tables.iterdir())
    )


def _last_write(database: Path) -> float:
    return max(file.stat().st_mtime for file in (database, *database.iterdir()))


def _write(path: Path, text: str) -> None:
    """In one step: with a half of it on a full disk, the next start would remove databases for nothing."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _known(path: Path) -> dict[str, str] | None:
    with suppress(OSError, ValueError):
        known = json.loads(path.read_bytes())
        if isinstance(known, dict):
            return known
    return None


def _prefix_of(folder: Path) -> str | None:
    with suppress(OSError, ValueError):
        return (folder / _TOPIC_PREFIX).read_text()
    return None


def _lock(folder: Path) -> IO[bytes]:
    file = (folder / _LOCK).open("ab")
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                file.close()
                raise StoreInUseError(str(folder)) from error
            time.sleep(0.1)
        else:
            return file


def _in_use(folder: Path) -> bool:
    for path in (folder / _LOCK, *(folder / _DATABASES).rglob("LOCK")):
        with suppress(FileNotFoundError), path.open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _remove(folder: Path, why: str) -> None:
    _log.warning("store removed", folder=str(folder), why=why)
    shutil.rmtree(folder)


def is_damage(error: Exception) -> bool:
    """Whether RocksDB says that a database's files are not what it has written."""
    # Its errors are of no class of their own.
    text = str(error)
    if type(error) is not Exception or any(surroundings in text for surroundings in _SURROUNDINGS):
        return False
    return text.startswith("Corruption") or os.strerror(errno.ENOENT) in text


class LocalStore(Store):
    """Faust's store, which removes databases that cannot be used."""

    # By partition, the lineage (``streams.partitions.restoration``) of databases that recovery goes on from, and the
    # offset from which on there must be no other one.
    _lineages: dict[int, bytes | None]
    _settled: dict[int, int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lineages, self._settled = {}, {}

    def resume(self, partition: int, offset: int | None, end: int) -> None:
        """Recovery is about to go on from an offset, or to begin; the changelog has an end."""
        # What begins meets all lineages that the changelog has had.
        self._settled[partition] = end if offset is None else 0
        self._lineages[partition] = None if offset is None else self._db_for_partition(partition).get(LINEAGE_KEY)

    def _open_for_partition(self, partition: int) -> Any:
        if self._mark(partition).exists():
            why = self._mark(partition).read_text(errors="replace")
            self.remove(partition, _OUTDATED if why == _OUTDATED else "damaged", error=why)
        try:
            return super()._open_for_partition(partition)
        except Exception as error:
            if not is_damage(error) or not self.partition_path(partition).exists():
                raise
            self.remove(partition, "damaged", error=str(error))
        return super()._open_for_partition(partition)

    def persisted_offset(self, tp: TP) -> int | None:
        with self.marking_damage(tp.partition):
            return super().persisted_offset(tp)

    def apply_changelog_batch(
        self, batch: Iterable[Any], to_key: Callable[[Any], Any], to_value: Callable[[Any], Any]
    ) -> None:
        events = list(batch)
        for partition in {event.message.partition for event in events}:
            mine = [event for event in events if event.message.partition == partition]
            with self.marking_damage(partition):
                self._check_lineage(partition, mine)
                super().apply_changelog_batch(mine, to_key, to_value)

    def _check_lineage(self, partition: int, events: list[Any]) -> None:
        """Raise if recovery or a standby meets another lineage than that of its database, again and again."""
        outdated = False
        for message in (event.message for event in events if partition in self._lineages):
            if message.key == LINEAGE_KEY and message.offset < self._settled[partition]:
                self._lineages[partition] = message.value
            elif message.key == LINEAGE_KEY:
                outdated |= message.value != self._lineages[partition]
        if outdated:
            self._mark_removable(partition, _OUTDATED)
        if outdated or self._mark(partition).exists():
            raise StoreOutdatedError(self.table_name, partition)

    @contextmanager
    def marking_damage(self, partition: int) -> Iterator[None]:
        """Mark the database on an error that says that it is damaged: the next process to open it removes it.

        This process may be reading it in several threads, and has derived state from it.
        """
        try:
            yield
        except Exception as error:
            # Once: Faust's recovery goes on after an error, and meets it with each record.
            if is_damage(error):
                self._mark_removable(partition, str(error))
            raise

    def _mark_removable(self, partition: int, why: str) -> None:
        if not self._mark(partition).exists():
            _log.error("store damaged", table=self.table_name, partition=partition, error=why)
            with suppress(OSError):
                self._mark(partition).write_text(why)

    def remove(self, partition: int, reason: str, **details: object) -> None:
        """Remove a partition's database, which is then recovered from the changelog."""
        REMOVED_STORES.labels(reason).inc()
        _log.error(
            "store removed, recovering from the changelog",
            table=self.table_name,
            partition=partition,
            reason=reason,
            **details,
        )
        self._dbs.pop(partition, None)
        path = self.partition_path(partition)
        removed = path.with_name(path.name + _REMOVED)
        shutil.rmtree(removed, ignore_errors=True)
        # In one step: RocksDB might take a half of the files for a database.
        with suppress(FileNotFoundError):
            path.rename(removed)
        self._mark(partition).unlink(missing_ok=True)
        shutil.rmtree(removed, ignore_errors=True)

    def remove_unused(self, partition: int, seconds: float) -> None:
        """Remove a database that is not open, and into which nothing was written for so long."""
        path = self.partition_path(partition)
        if partition in self._dbs or not path.is_dir():
            return
        if _last_write(path) < time.time() - seconds:
            _log.info("store of a lost partition removed", table=self.table_name, partition=partition)
            shutil.rmtree(path, ignore_errors=True)

    def _mark(self, partition: int) -> Path:
        path = self.partition_path(partition)
        return path.with_name(path.name + _DAMAGED)


def check_before_recovery(recovery: Any) -> None:
    """Have Faust's recovery compare databases with their changelogs first.

    It removes those that are ahead; by itself it would end the process. A changelog is shorter after an unclean
    election, or when it was made anew by brokers without topic ids. And it tells what of a changelog was deleted before
    this database had it: Kafka's compaction never moves a topic's beginning.
    """
    build_offsets = recovery._build_offsets
    # By partition, the beginning of a changelog that had lost the one before.
    told: dict[TP, int] = {}

    async def build(consumer: Any, tps: set[TP], destination: dict[TP, int | None], title: str) -> None:
        firsts, ends = await consumer.earliest_offsets(*tps), await consumer.highwaters(*tps)
        for tp in set(tps):
            store = recovery.tp_to_table[tp].data
            offset, end = destination.get(tp), ends.get(tp)
            if offset is not None and end is not None and offset >= end:
                store.remove(tp.partition, "ahead", offset=offset, end_offset=end)
                destination[tp] = None
            # Not Faust's offset, which is -1 where a recovery began just before a rebalance.
            stored = store.persisted_offset(tp)
            store.resume(tp.partition, stored, end or 0)
            missing = max((firsts.get(tp) or 0) - (0 if stored is None else stored + 1), 0)
            # A rebalance begins a recovery again.
            if missing and firsts[tp] != told.get(tp):
                told[tp] = firsts[tp]
                LOST_RECORDS.labels(f"{store.table_name}-changelog", "expired").inc(missing)
                _log.error("changelog has lost its beginning", topic=tp.topic, partition=tp.partition, records=missing)
        await build_offsets(consumer, tps, destination, title)

    recovery._build_offsets = build
