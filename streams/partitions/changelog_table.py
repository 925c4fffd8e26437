"""A Faust table whose writes are durable in the changelog when they return, and that detects foreign writes.

Faust's own ``table[key] = value`` hands the changelog record to the producer and returns: offsets can then be committed
for updates that a crash loses. Here a write is one awaited call, and needs no current event. What a foreign write is:
``streams.partitions``.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import faust
import structlog
from faust.types import TP
from rocksdict import WriteBatch

from foldtune.topics import MAX_CHANGELOG_RECORD_BYTES
from streams.errors import PartitionLostError, StoreOutdatedError
from streams.metrics import FOREIGN_WRITES, RESTORED_CHANGELOGS
from streams.partitions.broker_reader import BrokerReader
from streams.partitions.local_store import STORE_SCHEME
from streams.partitions.producing import acknowledged, check_size, enqueue
from streams.partitions.restoration import LINEAGE_KEY, Lineage, Missing, digest, missing, to_undo
from streams.threads import MAINTENANCE, run_in

_log = structlog.get_logger()
# Faust's defaults are 2 GiB of block cache and 192 MiB of buffers for each partition.
_ROCKSDB_OPTIONS = {"block_cache_size": 16 << 20, "write_buffer_size": 8 << 20, "max_write_buffer_number": 2}

# Faust collects 1,000 records of a changelog before it writes them; with the widest segments that is 400 MB.
_CHANGELOG_BUFFER = 64

# A checkpoint beyond every end: a recovery removes the store as one that is ahead of its changelog.
_BEYOND = 1 << 62

# A worker that is restarted may get its partitions back, and reads only what it has missed.
_LOST_SECONDS = 24 * 3600.0

Changes = Mapping[bytes, bytes | None]


class Table(Protocol):
    """Bytes by key, in partitions that a worker owns for a time."""

    def owned_generation(self, partition: int) -> int | None:
        """The group generation in which this worker owns the partition and has recovered it; else ``None``."""

    async def write(self, partition: int, changes: Changes) -> bool:
        """Durably put the keys with a value, and once these are durable delete the keys with ``None``.

        Returns false if there were foreign writes since the last write; the table then holds those as well.

        Raises:
            PartitionLostError: the partition was lost meanwhile; its new owner writes the same again.
            RecordRefusedError: a value is too large; nothing is written, unless it was the brokers that refused it.
        """

    def get(self, partition: int, key: bytes) -> bytes | None:
        """The value of a key; thread-safe."""

    def keys(self, partition: int, prefix: bytes) -> Iterator[bytes]:
        """The keys that start with ``prefix``, sorted.

        Raises:
            PartitionLostError: the partition is not owned, or not recovered yet, so keys may be missing.
        """

    def reclaim(self, partition: int) -> None:
        """Remove deleted values from the disk now; thread-safe."""


class ChangelogTable(Table):
    """Kept in RocksDB, backed by a compacted changelog topic."""

    def __init__(
        self, app: faust.App, name: str, partitions: int, reader: BrokerReader, reclaimed_key: bytes | None = None
    ) -> None:
        """The owner writes ``reclaimed_key`` after each ``reclaim``."""
        self._app = app
        self._reclaimed_key = reclaimed_key
        self._reader = reader
        self._table: Any = cast(Any, app).Table(
            name,
            partitions=partitions,
            key_type=bytes,
            value_type=bytes,
            recovery_buffer_size=_CHANGELOG_BUFFER,
            # A standby would hold the last records back until more come: what is deleted would stay on its disk.
            standby_buffer_size=1,
            options=dict(_ROCKSDB_OPTIONS),
            store=f"{STORE_SCHEME}:{name}",
        )
        self._apply_batch = self._table.apply_changelog_batch
        self._table.apply_changelog_batch = self._apply_unless_owned
        self._locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._name = name
        # Records read and written to restore changelogs: progress while nothing else proceeds.
        self.restored = 0
        # Partitions of standbys whose owner has removed deleted values from its disk.
        self._reclaimable: set[int] = set()

    def owned_generation(self, partition: int) -> int | None:
        owned = self._app.tables.actives_ready and self._changelog(partition) in self._app.assignor.assigned_actives()
        return self._app.consumer_generation_id if owned else None

    def owns(self, partition: int) -> bool:
        """Whether this worker owns the partition now and has recovered it, as far as it knows."""
        return self.owned_generation(partition) is not None

    def on_recovered(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call ``callback`` whenever the table has recovered from its changelog."""
        self._table.on_recover(callback)

    async def write(self, partition: int, changes: Changes) -> bool:
        # One write at a time, so that the changelog and RocksDB see all writes in the same order:
        # 1. Check ownership: only the owner writes to the changelog.
        # 2. Send the puts and wait for their acknowledgements; then the same with the deletes.
        # 3. If the acknowledged offsets are not the next after the checkpoint, there are foreign writes: read them too.
        # 4. Check ownership again, and apply all of it to RocksDB in one batch.
        # 5. Move the checkpoint, so that recovery reads only what is missing in RocksDB.
        # If they are not above the checkpoint, the changelog has lost its end: RocksDB has the state, see ``_restore``.
        # Cut short before 4, the changelog is ahead of RocksDB, and recovery or the next write applies the rest.
        for key, value in changes.items():
            check_size(self._table.changelog_topic_name, MAX_CHANGELOG_RECORD_BYTES, key, value)
        async with self._locks[partition]:
            self._check_owned(partition)
            generation = self.owned_generation(partition)
            checkpoint = self._table.data.persisted_offset(self._changelog(partition))
            lineage = Lineage.decode(self.get(partition, LINEAGE_KEY))
            told_again = {LINEAGE_KEY: lineage.encode()} if checkpoint is not None and checkpoint <= lineage.end else {}
            offsets = await self._append(partition, changes, told_again)
            if checkpoint is not None and min(offsets) <= checkpoint:
                await self._restore(partition, generation, changes, offset=min(offsets), checkpoint=checkpoint)
                return True
            first, last = (0 if checkpoint is None else checkpoint + 1), max(offsets)
            contiguous: bool = last - first + 1 == len(offsets)
            batch = WriteBatch(raw_mode=True)
            if contiguous:
                _add(batch, changes)
            else:
                FOREIGN_WRITES.inc()
                _log.warning("foreign writes applied", partition=partition, first_offset=first, last_offset=last)
                async for record in self._reader.records(self._table.changelog_topic_name, partition, first, last):
                    _add(batch, {record.key: record.value})
            self._check_owned(partition)
            with self._rocksdb(partition) as database:
                database.write(batch)
                self._table.data.set_persisted_offset(self._changelog(partition), last)
            return contiguous

    async def _append(self, partition: int, *changes: Changes) -> list[int]:
        """Append changes to the changelog, of each the puts before the deletes; their offsets, all acknowledged."""
        topic = self._table.changelog_topic
        offsets = []
        for one in changes:
            puts = {key: value for key, value in one.items() if value is not None}
            for part in (puts, dict.fromkeys(one.keys() - puts.keys())):
                sent = [await enqueue(topic, key=key, value=value, partition=partition) for key, value in part.items()]
                offsets += [(await acknowledged(topic, record)).offset for record in sent]
        return offsets

    async def _restore(
        self, partition: int, generation: int | None, changes: Changes, *, offset: int, checkpoint: int
    ) -> None:
        """Apply changes, and write the state to a changelog that has lost its end (``streams.partitions.restoration``).

        Raises like ``write``.
        """
        RESTORED_CHANGELOGS.labels(self._name).inc()
        ids = {"table": self._name, "partition": partition}
        _log.error("changelog has lost its end, writing it again", **ids, offset=offset, checkpoint=checkpoint)
        former = Lineage.decode(self.get(partition, LINEAGE_KEY))
        # An attempt before this one may have failed.
        lineage = Lineage.new(former.end if checkpoint == _BEYOND else max(former.end, checkpoint))
        lineage_changes = {LINEAGE_KEY: lineage.encode()}
        batch = WriteBatch(raw_mode=True)
        _add(batch, {**changes, **lineage_changes})
        with self._rocksdb(partition) as database:
            # First: should this worker end or lose the partition, the store is no prefix of what the changelog is now.
            self._table.data.set_persisted_offset(self._changelog(partition), _BEYOND)
            try:
                self._check_owned_since(partition, generation)
                database.write(batch)
            finally:
                await self._undo(partition, changes, offset)
        # By then a zombie has heard that it is none of the group's members any more: it must not undo what the owner
        # has written.
        await asyncio.sleep(self._app.conf.broker_session_timeout / 3)
        self._check_owned_since(partition, generation)
        while True:
            last, digests = await self._read(partition)
            lacking = await run_in(MAINTENANCE, self._missing, partition, digests)
            if not any(lacking):
                break
            for keys in lacking:
                for start in range(0, len(keys), _CHANGELOG_BUFFER):
                    chunk = {key: self.get(partition, key) for key in keys[start : start + _CHANGELOG_BUFFER]}
                    self._check_owned_since(partition, generation)
                    self.restored += len(await self._append(partition, chunk, lineage_changes))
        self._check_owned_since(partition, generation)
        self._table.data.set_persisted_offset(self._changelog(partition), last)
        _log.warning("changelog has the state again", **ids, offset=last)

    async def _undo(self, partition: int, changes: Changes, offset: int) -> None:
        """Have a changelog that lacks its end go on from where it did before the changes, which begin at an offset.

        Also for a partition that was lost meanwhile: its next owner then reads records again.
        """
        undone = to_undo(changes)
        if not undone:
            return
        # At once, since reading takes its time.
        await self._append(partition, {key: value for key, value in undone.items() if value is not None})
        held = dict[bytes, bytes | None]()
        async for record in self._reader.whole(self._table.changelog_topic_name, partition):
            self.restored += 1
            if record.offset < offset and record.key in undone:
                held[record.key] = record.value
        await self._append(partition, {key: value for key, value in held.items() if value is not None})

    async def _read(self, partition: int) -> tuple[int, dict[bytes, bytes]]:
        """The last offset of a changelog, and the digests of its last values by key."""
        last, digests = -1, dict[bytes, bytes]()
        async for record in self._reader.whole(self._table.changelog_topic_name, partition):
            last = record.offset
            self.restored += 1
            if record.value is None:
                digests.pop(record.key, None)
            else:
                digests[record.key] = digest(record.value)
        return last, digests

    def _missing(self, partition: int, digests: Mapping[bytes, bytes]) -> Missing:
        with self._rocksdb(partition) as database:
            iterator = database.iter()
            iterator.seek_to_first()

            def content() -> Iterator[tuple[bytes, bytes]]:
                while iterator.valid():
                    # The checkpoint is none of the state.
                    if (key := iterator.key()) != self._table.data.offset_key:
                        yield key, iterator.value()
                    iterator.next()
                iterator.status()

            return missing(content(), digests)

    def get(self, partition: int, key: bytes) -> bytes | None:
        with self._rocksdb(partition) as database:
            value: bytes | None = database.get(key)
            return value

    def keys(self, partition: int, prefix: bytes) -> Iterator[bytes]:
        self._check_owned(partition)
        with self._rocksdb(partition) as database:
            # Not its ``keys``, which end at a damaged block as at the last one.
            iterator = database.iter()
            iterator.seek(prefix)
            while iterator.valid() and (key := iterator.key()).startswith(prefix):
                yield key
                iterator.next()
            iterator.status()

    def reclaim(self, partition: int) -> None:
        with self._rocksdb(partition) as database:
            database.flush()
            database.compact_range(None, None)

    def remove_lost(self) -> None:
        """Remove the databases of partitions that have been other workers' for a day: no erasure reaches them."""
        mine = self._app.assignor.assigned_actives() | self._app.assignor.assigned_standbys()
        for partition in range(self._app.conf.topic_partitions):
            if self._changelog(partition) not in mine:
                self._table.data.remove_unused(partition, _LOST_SECONDS)

    def _check_owned(self, partition: int) -> None:
        """Raise ``PartitionLostError`` unless ``owns``."""
        if not self.owns(partition):
            raise PartitionLostError(partition)

    def _check_owned_since(self, partition: int, generation: int | None) -> None:
        """Raise ``PartitionLostError`` unless the partition is owned, without a break since a generation."""
        self._check_owned(partition)
        if self.owned_generation(partition) != generation:
            raise PartitionLostError(partition)

    def _apply_unless_owned(self, events: Iterable[Any]) -> None:
        # Faust buffers records for standbys, and hands them over after the partition became active, too. Applied then,
        # they would undo newer writes; foreign ones among them are found by ``write``.
        events = [event for event in events if not self.owns(event.message.partition)]
        try:
            self._apply_batch(events)
        except StoreOutdatedError as error:
            # Faust would only log it, and come again and again with these records and those of other partitions.
            _log.error("local database cannot be used, exiting", table=self._name, error=str(error))
            os._exit(os.EX_SOFTWARE)
        self._reclaimable |= {event.message.partition for event in events if event.message.key == self._reclaimed_key}

    async def reclaim_standbys(self) -> None:
        """Remove deleted values from the disk where the owner has done so: a standby has them in its files, too."""
        standbys = self._app.assignor.assigned_standbys()
        while self._reclaimable:
            partition = self._reclaimable.pop()
            if self._changelog(partition) in standbys:
                await run_in(MAINTENANCE, self.reclaim, partition)

    @contextmanager
    def _rocksdb(self, partition: int) -> Iterator[Any]:
        # Faust's own mapping takes the partition from the current event; exports and timers have none.
        with self._table.data.marking_damage(partition):
            yield self._table.data._db_for_partition(partition)

    def _changelog(self, partition: int) -> TP:
        return TP(self._table.changelog_topic_name, partition)


def _add(batch: WriteBatch, changes: Changes) -> None:
    for key, value in changes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
