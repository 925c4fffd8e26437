"""A Faust table whose writes are known to be in its changelog before anything else is done on the strength of them.

Faust's own ``table[key] = value`` hands the changelog record to the producer and goes on: offsets can then be
committed for updates that a crash loses. Here a write is one awaited call, and needs no current event.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, cast

import faust
import structlog
from faust.types import TP
from rocksdict import WriteBatch

from streams.errors import PartitionLostError
from streams.metrics import FOREIGN_WRITES
from streams.partitions.broker_reader import BrokerReader

_log = structlog.get_logger()
# Faust's defaults are 2 GiB of block cache and 192 MiB of buffers for each partition.
_ROCKSDB_OPTIONS = {"block_cache_size": 16 << 20, "write_buffer_size": 8 << 20, "max_write_buffer_number": 2}

# Faust collects 1,000 records of a changelog before it writes them; with the widest segments that is 400 MB.
_CHANGELOG_BUFFER = 64

Changes = Mapping[bytes, bytes | None]


class Table(Protocol):
    """Bytes by key, in partitions that a worker owns for a time."""

    async def write(self, partition: int, changes: Changes) -> bool:
        """Put keys, and once that is durable delete those with ``None``, durably.

        Returns whether nothing but this was written since the last time; if not, the table may hold more than its
        owner put there: what a worker wrote that did not know yet that the partition was no longer its own.

        Raises:
            PartitionLostError: the partition was taken away meanwhile; what was written is written again by its owner.
        """

    def get(self, partition: int, key: bytes) -> bytes | None:
        """The value of a key; may be called from any thread."""

    def keys(self, partition: int, prefix: bytes) -> Iterator[bytes]:
        """The keys that start with ``prefix``, sorted.

        Raises:
            PartitionLostError: what is here is not, or not yet, all that the partition holds.
        """

    def reclaim(self, partition: int) -> None:
        """Give the space of deleted values back to the disk now; may be called from any thread."""


class ChangelogTable(Table):
    """Kept in RocksDB, backed by a compacted changelog topic."""

    def __init__(self, app: faust.App, name: str, partitions: int, reader: BrokerReader) -> None:
        self._app = app
        self._reader = reader
        self._table: Any = cast(Any, app).Table(
            name,
            partitions=partitions,
            key_type=bytes,
            value_type=bytes,
            recovery_buffer_size=_CHANGELOG_BUFFER,
            options=dict(_ROCKSDB_OPTIONS),
        )
        self._apply_batch = self._table.apply_changelog_batch
        self._table.apply_changelog_batch = self._apply_unless_owned
        self._locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    def owned_generation(self, partition: int) -> int | None:
        """The generation of the group in which this worker owns the partition, once it has caught up; else ``None``."""
        owned = self._app.tables.actives_ready and self._changelog(partition) in self._app.assignor.assigned_actives()
        return self._app.consumer_generation_id if owned else None

    def owns(self, partition: int) -> bool:
        """Whether this worker is the partition's owner at this moment."""
        return self.owned_generation(partition) is not None

    def _check_owned(self, partition: int) -> None:
        """Raise ``PartitionLostError`` unless ``owns``."""
        if not self.owns(partition):
            raise PartitionLostError(partition)

    def _apply_unless_owned(self, events: Iterable[Any]) -> None:
        # Faust hands over, with records for standbys, late ones of partitions that are owned by now. Applied, they
        # would undo what was written here since; what is news in them ``write`` finds by its offset.
        self._apply_batch([event for event in events if not self.owns(event.message.partition)])

    def on_recovered(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Have ``callback`` called whenever the table has caught up with its changelog."""
        self._table.on_recover(callback)

    async def write(self, partition: int, changes: Changes) -> bool:
        # One write at a time, so that the changelog and RocksDB see them in one order:
        # 1. only the owner writes to the changelog,
        # 2. every record is acknowledged by the brokers,
        # 3. where the offsets tell that somebody else wrote as well, that is read and taken over too,
        # 4. RocksDB takes the same, unless the partition went to another worker meanwhile,
        # 5. the checkpoint moves, so that a restart reads only what is missing here.
        async with self._locks[partition]:
            self._check_owned(partition)
            topic = self._table.changelog_topic
            puts = {key: value for key, value in changes.items() if value is not None}
            offsets = []
            for part in (puts, dict.fromkeys(changes.keys() - puts.keys())):
                sent = [await topic.send(key=key, value=value, partition=partition) for key, value in part.items()]
                offsets += [(await record).offset for record in sent]
            known = self._table.data.persisted_offset(self._changelog(partition))
            first, last = (0 if known is None else known + 1), max(offsets)
            alone: bool = last - first + 1 == len(offsets)
            batch = WriteBatch(raw_mode=True)
            if alone:
                _apply(batch, changes)
            else:
                FOREIGN_WRITES.inc()
                _log.warning("foreign writes taken over", partition=partition, first=first, last=last)
                async for record in self._reader.records(self._table.changelog_topic_name, partition, first, last):
                    _apply(batch, {record.key: record.value})
            self._check_owned(partition)
            self._rocksdb(partition).write(batch)
            self._table.data.set_persisted_offset(self._changelog(partition), last)
            return alone

    def get(self, partition: int, key: bytes) -> bytes | None:
        value: bytes | None = self._rocksdb(partition).get(key)
        return value

    def keys(self, partition: int, prefix: bytes) -> Iterator[bytes]:
        self._check_owned(partition)
        for key in self._rocksdb(partition).keys(from_key=prefix):
            if not key.startswith(prefix):
                return
            yield key

    def reclaim(self, partition: int) -> None:
        database = self._rocksdb(partition)
        database.flush()
        database.compact_range(None, None)

    def _rocksdb(self, partition: int) -> Any:
        # The public mapping needs a current event to know the partition; exports and timers have none.
        return self._table.data._db_for_partition(partition)

    def _changelog(self, partition: int) -> TP:
        return TP(self._table.changelog_topic_name, partition)


def _apply(batch: WriteBatch, changes: Changes) -> None:
    for key, value in changes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
