"""The rolling training sets of the partitions that a worker owns."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from foldtune.bounds import Bounds
from foldtune.settings import Sets, WorkerSettings
from foldtune.topics import Topic
from streams.errors import OutdatedViewError
from streams.partitions.changelog_table import Changes, Table
from streams.training_sets import state_events
from streams.training_sets.erasures import ErasureRules, Erasures, stored_erasures
from streams.training_sets.segments import SEGMENT_PREFIX, Segment, folder_prefix, pack, unpack
from streams.training_sets.state_events import NO_FOLDER, ErasureRequested, StateRecord

# When the partition's files were last compacted: after erasures were applied to its segments, or for the day.
SWEPT_KEY = b"x|swept"


@dataclass(frozen=True)
class PartitionView:
    """A partition's training sets at one moment. Segments are immutable, so any thread may read it."""

    partition: int
    table: Table
    segments: dict[str, tuple[Segment, ...]]
    limits: Sets
    erasure_rules: ErasureRules

    def folder_ids(self, selected: Collection[str] | None = None) -> list[str]:
        """The partition's folders, those ``selected`` or all, sorted."""
        return sorted(
            folder_id
            for folder_id in self.segments
            if folder_id != NO_FOLDER and (selected is None or folder_id in selected)
        )

    def erasures(self) -> Erasures:
        """All erasures ever received; raises like ``contents``, and like ``Table.keys``."""
        stored = [erased for _, erased in stored_erasures(self.table, self.partition)]
        return Erasures([*stored, *map(self.erasure_rules.erased, self.named_erasures())], self.erasure_rules)

    def named_erasures(self) -> list[ErasureRequested]:
        """Those that version 0.1 stored with the names of their subjects; raises like ``contents``."""
        records = self.records(self.segments.get(NO_FOLDER, ()))
        return [record.event for record in records if isinstance(record.event, ErasureRequested)]

    def too_old(self, folder_id: str) -> int:
        """How many logs of a folder were too old when they arrived."""
        return _too_old(self.table, self.partition, folder_id).logs

    def records(self, segments: Iterable[Segment]) -> Iterator[StateRecord]:
        """The records of segments of this view; raises like ``contents``."""
        for _, content in self.contents(segments):
            yield from unpack(content)

    def contents(self, segments: Iterable[Segment]) -> Iterator[tuple[Segment, bytes]]:
        """Segments with their content.

        Raises:
            OutdatedViewError: a segment was rewritten meanwhile; under the ``rewrite_lock``, by another worker.
        """
        for segment in segments:
            content = self.table.get(self.partition, segment.key)
            if content is None:
                raise OutdatedViewError(self.partition)
            yield segment, content


class TrainingSets:
    """Adds records and gives views. Caches keys and erasures in memory, never content."""

    def __init__(self, table: Table, limits: Sets, erasure_rules: ErasureRules | None = None) -> None:
        self.table = table
        self.erasure_rules = erasure_rules or ErasureRules.of(WorkerSettings(), Bounds())
        # Partitions that this worker has swept, RocksDB's files included, since it became their owner.
        self.swept: set[int] = set()
        # Per partition, the number of own writes that found foreign ones before them (``streams.partitions``).
        self.foreign_write_count: Counter[int] = Counter()
        self._limits = limits
        # Folders that may have changed since ``take_changed``, by partition.
        self._changed: dict[int, set[str]] = defaultdict(set)
        self._index: dict[int, dict[str, set[Segment]]] = {}
        self._erasures: dict[int, Erasures] = {}
        self._rewrite_locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._add_locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def add(self, partition: int, topic: Topic, records: Iterable[StateRecord]) -> None:
        """Store the records of one block; durable on return. Idempotent.

        Raises:
            PartitionLostError: another worker owns the partition now; the block is redelivered to it.
        """
        # One at a time: what an erasure was not applied to must be there before it, or no sweep for it would see it.
        async with self._add_locks[partition]:
            if topic is Topic.ERASURES:
                events = [record.event for record in records if isinstance(record.event, ErasureRequested)]
                await self.write(partition, self.erasure_rules.changes(events))
                if partition in self._erasures:
                    self._erasures[partition].add(map(self.erasure_rules.erased, events))
                self._changed[partition] |= self._segments(partition).keys()
                return
            # What is erased of a record that is redelivered or late is not even written.
            if erasures := self.erasures(partition):
                records = [erasures.apply(record) for record in records]
            await self.replace(partition, dict(pack(topic, records)), ())

    async def count_too_old(self, partition: int, offsets: Mapping[str, Sequence[int]]) -> None:
        """Count logs, by folder, that no set will keep; durable on return, and each once, however often redelivered."""
        changes: dict[bytes, bytes | None] = {}
        for folder_id, found in offsets.items():
            counted = _too_old(self.table, partition, folder_id)
            if new := [offset for offset in found if offset >= counted.next_offset]:
                changes[_too_old_key(folder_id)] = msgspec.json.encode((new[-1] + 1, counted.logs + len(new)))
        await self.write(partition, changes)
        self._changed[partition] |= offsets.keys()

    async def replace(self, partition: int, packed: dict[Segment, bytes], obsolete: Collection[Segment]) -> None:
        """Write segments, then delete the obsolete ones; durable on return. Raises like ``add``."""
        changes: dict[bytes, bytes | None] = {segment.key: content for segment, content in packed.items()}
        changes |= {segment.key: None for segment in obsolete if segment not in packed}
        await self.write(partition, changes)
        index = self._segments(partition)
        for segment in obsolete:
            index[segment.folder_id].discard(segment)
        for segment in packed:
            index[segment.folder_id].add(segment)
        self._changed[partition] |= {segment.folder_id for segment in (*obsolete, *packed)}

    async def write(self, partition: int, changes: Changes) -> None:
        """Write keys to the partition's table; durable on return. Raises like ``add``."""
        if changes and not await self.table.write(partition, changes):
            # Foreign writes: the index does not have their segments, and erasures may have to be applied to them.
            self._index.pop(partition, None)
            self._erasures.pop(partition, None)
            self.swept.discard(partition)
            self.foreign_write_count[partition] += 1

    def view(self, partition: int) -> PartitionView:
        """The partition's present training sets."""
        index = self._segments(partition)
        segments = {folder_id: tuple(sorted(group)) for folder_id, group in index.items() if group}
        return PartitionView(partition, self.table, segments, self._limits, self.erasure_rules)

    def erasures(self, partition: int) -> Erasures:
        """All erasures that the partition ever received, cached; raises like ``PartitionView.erasures``."""
        if partition not in self._erasures:
            self._erasures[partition] = self.view(partition).erasures()
        return self._erasures[partition]

    def cached_segments(self, partition: int) -> Mapping[str, Collection[Segment]] | None:
        """The segments by folder if they are in memory, else ``None``; never reads the table."""
        return self._index.get(partition)

    def take_changed(self, partition: int) -> set[str]:
        """The folders that may have changed since the last call; at first, and after a rebalance, all.

        Raises like ``Table.keys``.
        """
        self._segments(partition)
        return self._changed.pop(partition, set()) - {NO_FOLDER}

    def rewrite_lock(self, partition: int) -> asyncio.Lock:
        """Held while segments are rewritten, and while a view must stay readable."""
        return self._rewrite_locks[partition]

    def labelled_since(self, partition: int, offsets: Mapping[Topic, int], folders: Collection[str] | None) -> int:
        """The number of labels in ``folders`` (``None``: all) from an offset on, of each topic in ``offsets``.

        Of logs that have one, and of feedback that names a document: a log with both counts twice, as to know it would
        take to read all logs.
        """
        view, count = self.view(partition), 0
        for folder_id in view.folder_ids(folders):
            for segment in view.segments[folder_id]:
                offset = offsets.get(segment.topic)
                if offset is None or segment.last_offset < offset:
                    continue
                if segment.first_offset >= offset:
                    count += segment.labelled_count
                else:
                    records = view.records([segment])
                    count += sum(
                        record.offset >= offset and state_events.is_labelled(record.event) for record in records
                    )
        return count

    def invalidate(self) -> None:
        """Drop the caches after a rebalance: another worker may have written to any partition."""
        self._index.clear()
        self._erasures.clear()
        self.swept.clear()

    def _segments(self, partition: int) -> dict[str, set[Segment]]:
        # Built lazily from the keys, which are all there is after a restart or a rebalance.
        if partition not in self._index:
            index: dict[str, set[Segment]] = defaultdict(set)
            for key in self.table.keys(partition, SEGMENT_PREFIX):
                segment = Segment.from_key(key)
                index[segment.folder_id].add(segment)
            self._index[partition] = index
            self._changed[partition] |= index.keys()
        return self._index[partition]


class _TooOld(NamedTuple):
    """The number of a folder's logs below an offset that were too old when they arrived."""

    next_offset: int = 0
    logs: int = 0


def _too_old(table: Table, partition: int, folder_id: str) -> _TooOld:
    value = table.get(partition, _too_old_key(folder_id))
    return msgspec.json.decode(value, type=_TooOld) if value else _TooOld()


def _too_old_key(folder_id: str) -> bytes:
    return b"a|" + folder_prefix(folder_id)
