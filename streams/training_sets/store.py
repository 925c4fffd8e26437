"""The rolling training sets of the partitions that a worker owns."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from foldtune.settings import Sets
from foldtune.topics import Topic
from streams.errors import OutdatedViewError
from streams.partitions.changelog_table import Changes, Table
from streams.training_sets import state_events
from streams.training_sets.decoding import Record
from streams.training_sets.erasures import Erasures
from streams.training_sets.fold import FolderSet, fold
from streams.training_sets.segments import SEGMENTS, Segment, pack, unpack
from streams.training_sets.state_events import NO_FOLDER, ErasureRequested

# Says which erasures every segment of a partition has been rid of.
PURGED = b"x|purged"


@dataclass(frozen=True)
class PartitionView:
    """What a partition holds at one moment. Segments never change, so it may be read from another thread."""

    partition: int
    table: Table
    segments: dict[str, tuple[Segment, ...]]
    limits: Sets

    def folders(self, wanted: Collection[str] | None = None) -> list[str]:
        """The folders that are here, and wanted, sorted."""
        return sorted(name for name in self.segments if name != NO_FOLDER and (wanted is None or name in wanted))

    def folder(self, folder_id: str, as_of: datetime) -> FolderSet:
        """A folder's training set at the moment ``as_of``."""
        records = self.records(self.segments.get(folder_id, ()))
        return fold(folder_id, records, self.erasures(), self.limits.of(folder_id), as_of)

    def erasures(self) -> Erasures:
        """All that was ever to be forgotten."""
        records = self.records(self.segments.get(NO_FOLDER, ()))
        return Erasures(record.event for record in records if isinstance(record.event, ErasureRequested))

    def records(self, segments: Iterable[Segment]) -> Iterator[Record]:
        """The records of segments of this view."""
        for _, content in self.contents(segments):
            yield from unpack(content)

    def contents(self, segments: Iterable[Segment]) -> Iterator[tuple[Segment, bytes]]:
        """Segments with what they hold.

        Raises:
            OutdatedViewError: one was rewritten meanwhile; while the partition is held ``steady``, by another worker.
        """
        for segment in segments:
            content = self.table.get(self.partition, segment.key)
            if content is None:
                raise OutdatedViewError(self.partition)
            yield segment, content


class TrainingSets:
    """Adds records and gives views. Holds only keys in memory, never content."""

    def __init__(self, table: Table, limits: Sets) -> None:
        self.table = table
        # Partitions that this worker has rid of what was to be erased, files and all, since it took them over.
        self.purged: set[int] = set()
        # How often something of another worker's was taken over.
        self.foreign_write_count: Counter[int] = Counter()
        self._limits = limits
        self._index: dict[int, dict[str, set[Segment]]] = {}
        self._erasures: dict[int, Erasures] = {}
        self._steady: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def add(self, partition: int, topic: Topic, records: Iterable[Record]) -> None:
        """Keep the records of one block; when this returns they are durable. Adding the same again changes nothing.

        Raises:
            PartitionLostError: the partition went to another worker, which gets the same records again.
        """
        packed = dict(pack(topic, self._to_keep(partition, records)))
        await self.replace(partition, packed, ())
        if topic is Topic.ERASURES:
            self._erasures.pop(partition, None)

    async def replace(self, partition: int, packed: dict[Segment, bytes], gone: Iterable[Segment]) -> None:
        """Write segments and delete others, in this order, durably; raises like ``add``."""
        changes: dict[bytes, bytes | None] = {segment.key: content for segment, content in packed.items()}
        changes |= {segment.key: None for segment in gone if segment not in packed}
        await self.write(partition, changes)
        index = self._segments(partition)
        for segment in gone:
            index[segment.folder_id].discard(segment)
        for segment in packed:
            index[segment.folder_id].add(segment)

    async def write(self, partition: int, changes: Changes) -> None:
        """Write to the partition; raises like ``add``."""
        if changes and not await self.table.write(partition, changes):
            # Another worker wrote here too: the index does not know what, and its segments may want erasing.
            self._index.pop(partition, None)
            self._erasures.pop(partition, None)
            self.purged.discard(partition)
            self.foreign_write_count[partition] += 1

    def view(self, partition: int) -> PartitionView:
        """What the partition holds now."""
        index = self._segments(partition)
        segments = {name: tuple(sorted(found)) for name, found in index.items() if found}
        return PartitionView(partition, self.table, segments, self._limits)

    def erasures(self, partition: int) -> Erasures:
        """All that was ever to be forgotten, as the partition knows it."""
        if partition not in self._erasures:
            self._erasures[partition] = self.view(partition).erasures()
        return self._erasures[partition]

    def known(self, partition: int) -> Mapping[str, Collection[Segment]] | None:
        """The segments by folder, where they have been listed already: memory alone, nothing is read for it."""
        return self._index.get(partition)

    def steady(self, partition: int) -> asyncio.Lock:
        """Held while segments are rewritten, or while a view must stay readable to its end."""
        return self._steady[partition]

    def labelled_since(self, partition: int, offset: int, folders: Collection[str] | None) -> int:
        """How many labelled logs there are from an offset of ``chat-logs`` on."""
        view, count = self.view(partition), 0
        for folder_id in view.folders(folders):
            for segment in view.segments[folder_id]:
                if segment.topic is not Topic.CHAT_LOGS or segment.last < offset:
                    continue
                if segment.first >= offset:
                    count += segment.labelled
                else:
                    records = view.records([segment])
                    count += sum(
                        record.offset >= offset and state_events.is_labelled(record.event) for record in records
                    )
        return count

    def forget(self) -> None:
        """Partitions came or went: what is in the table may be another thing now."""
        self._index.clear()
        self._erasures.clear()
        self.purged.clear()

    def _to_keep(self, partition: int, records: Iterable[Record]) -> Iterable[Record]:
        # What an erasure covers that is known already is not even written.
        erasures = self.erasures(partition)
        if not erasures:
            return records
        left = (erasures.applied(record) for record in records)
        return [record for record in left if record is not None]

    def _segments(self, partition: int) -> dict[str, set[Segment]]:
        # Read from the keys when first asked for: after a restart and after a rebalance there is nothing else to know.
        if partition not in self._index:
            index: dict[str, set[Segment]] = defaultdict(set)
            for key in self.table.keys(partition, SEGMENTS):
                segment = Segment.of_key(key)
                index[segment.folder_id].add(segment)
            self._index[partition] = index
        return self._index[partition]
