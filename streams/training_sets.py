"""The rolling training sets of the partitions that a worker owns."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from infra.settings import SetLimits
from streams.durable_table import Table
from streams.events import ErasureRequested
from streams.fold import CLOCK_SKEW, FolderSet, fold
from streams.records import NO_FOLDER, Record
from streams.segments import SEGMENTS, Segment, milliseconds, pack, unpack
from streams.topics import Topic

# A folder is looked at for eviction by count only when it has outgrown its limit by this much: the look costs a fold.
_EVICTION_SLACK = 1.2


@dataclass(frozen=True)
class PartitionView:
    """What a partition holds at one moment. Segments never change, so it may be read from another thread."""

    partition: int
    table: Table
    segments: dict[str, tuple[Segment, ...]]
    limits: SetLimits

    def folders(self, wanted: Collection[str] | None) -> list[str]:
        """The folders that are here, and wanted, sorted."""
        return sorted(name for name in self.segments if name != NO_FOLDER and (wanted is None or name in wanted))

    def folder(self, folder_id: str, as_of: datetime) -> FolderSet:
        """A folder's training set at the moment ``as_of``."""
        return fold(folder_id, self._records(folder_id), self._erasures(), self.limits, as_of)

    def _records(self, folder_id: str) -> Iterator[Record]:
        for segment in self.segments.get(folder_id, ()):
            content = self.table.get(self.partition, segment.key)
            # Evicted between the moment of the view and now: it was out of bounds, so the fold would drop it as well.
            if content is not None:
                yield from unpack(segment, content)

    def _erasures(self) -> list[ErasureRequested]:
        records = self._records(NO_FOLDER)
        return [record.event for record in records if isinstance(record.event, ErasureRequested)]


class TrainingSets:
    """Adds records, gives views and lets the oldest go. Holds only keys in memory, never content."""

    def __init__(self, table: Table, limits: SetLimits) -> None:
        self.table = table
        self._limits = limits
        self._index: dict[int, dict[str, set[Segment]]] = {}

    async def add(self, partition: int, records: Iterable[Record]) -> None:
        """Keep the records of one block; when this returns they are durable. Adding the same again changes nothing.

        Raises:
            PartitionLostError: the partition went to another worker, which gets the same records again.
        """
        packed = dict(pack(records))
        if not packed:
            return
        await self.table.write(partition, {segment.key: content for segment, content in packed.items()})
        index = self._segments(partition)
        for segment in packed:
            index[segment.folder_id].add(segment)

    def view(self, partition: int) -> PartitionView:
        """What the partition holds now."""
        index = self._segments(partition)
        segments = {
            folder_id: tuple(sorted(found, key=lambda segment: segment.key))
            for folder_id, found in index.items()
            if found
        }
        return PartitionView(partition, self.table, segments, self._limits)

    def labelled_since(self, partition: int, offset: int, folders: Collection[str] | None) -> int:
        """How many labelled logs there are from an offset of ``chat-logs`` on; counted by whole segments."""
        return sum(
            segment.labelled
            for folder_id, found in self._segments(partition).items()
            if folders is None or folder_id in folders
            for segment in found
            if segment.topic is Topic.CHAT_LOGS and segment.first >= offset
        )

    async def evict(self, partition: int, now: datetime) -> int:
        """Let go of the segments that no later fold can need; returns how many. Raises like ``add``."""
        # In a thread: judging a folder by count folds it, and the event loop must go on answering Kafka meanwhile.
        gone = await asyncio.to_thread(_outlived, self.view(partition), now)
        if gone:
            await self.table.write(partition, {segment.key: None for segment in gone})
            index = self._segments(partition)
            for segment in gone:
                index[segment.folder_id].discard(segment)
        return len(gone)

    def forget(self) -> None:
        """Partitions came or went: what is in the table may be another thing now."""
        self._index.clear()

    def _segments(self, partition: int) -> dict[str, set[Segment]]:
        # Read from the keys when first asked for: after a restart and after a rebalance there is nothing else to know.
        if partition not in self._index:
            index: dict[str, set[Segment]] = defaultdict(set)
            for key in self.table.keys(partition, SEGMENTS):
                segment = Segment.of_key(key)
                index[segment.folder_id].add(segment)
            self._index[partition] = index
        return self._index[partition]


def _by_key(segment: Segment) -> bytes:
    return segment.key


def _outlived(view: PartitionView, now: datetime) -> list[Segment]:
    gone = []
    for folder_id in view.folders(None):
        cutoff = _cutoff(view, folder_id, now)
        oldest = {Topic.CHAT_LOGS: cutoff, Topic.FEEDBACK: cutoff - CLOCK_SKEW // timedelta(milliseconds=1)}
        gone += [segment for segment in view.segments[folder_id] if segment.newest_ms < oldest.get(segment.topic, 0)]
    return gone


def _cutoff(view: PartitionView, folder_id: str, now: datetime) -> int:
    """Milliseconds before which nothing in the folder can count any more."""
    limits = view.limits
    by_age = milliseconds(now - limits.max_age)
    logs = sum(segment.records for segment in view.segments[folder_id] if segment.topic is Topic.CHAT_LOGS)
    if logs <= limits.max_examples * _EVICTION_SLACK:
        return by_age
    kept = view.folder(folder_id, now).logs
    if len(kept) < limits.max_examples:
        return by_age
    return max(by_age, milliseconds(kept[0].log.occurred_at))
