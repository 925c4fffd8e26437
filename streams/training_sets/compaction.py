"""Keeps the segments of a partition few, within bounds, and free of what was to be forgotten.

Each step rewrites segments that it has read, and deletes only those, after their successors are durable. Done twice,
done by two workers at once, or cut short anywhere, it comes to the same training sets.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from typing import NamedTuple

import msgspec
import structlog
from msgspec import structs

from foldtune.topics import DATA_TOPICS, Topic
from streams.errors import OutdatedViewError
from streams.partitions.consumer import stored_offset
from streams.training_sets import state_events
from streams.training_sets.decoding import Record
from streams.training_sets.erasures import Erasures
from streams.training_sets.fold import Bound, bound_of, needed
from streams.training_sets.segments import Segment, folder_prefix, joined, milliseconds, pack, unpack
from streams.training_sets.store import PURGED, PartitionView, TrainingSets

_log = structlog.get_logger()
# Narrower than this, a segment is merged with its like once there are so many: each record is rewritten about
# log(wide / block) / log(fan-in) times, and a folder never has more than a few dozen narrow segments.
NARROW_RECORDS = 1_000
NARROW_BYTES = 128 * 1024
FAN_IN = 8
# Bounds the memory of a merge, should there be a great backlog.
_AT_ONCE = 64
# An export that is repeated after a crash asks for the state of a little while ago.
GRACE = timedelta(days=1)
# A folder holds at most so many times what it may, or what it held when it was last gone through.
_SLACK = 2
# Starts the keys that say how much that was.
_COMPACTED = b"c|"

# Of a record in its topic: an offset, and a position in the message there.
Place = tuple[int, int]
Rewrite = tuple[dict[Segment, bytes], list[Segment]]


@dataclass
class MaintenanceCounts:
    """How many segments were taken out, by what for."""

    evicted: int = 0
    purged: int = 0
    compacted: int = 0
    merged: int = 0


async def maintain(sets: TrainingSets, partition: int, now: datetime) -> MaintenanceCounts:
    """Evict, purge, compact and merge; gives way to an export.

    Raises:
        PartitionLostError: the partition is another worker's, and so is the rest of the work.
    """
    done = MaintenanceCounts()
    if sets.steady(partition).locked():
        return done
    async with sets.steady(partition):
        with suppress(OutdatedViewError):
            outlived = _outlived(_settled(sets, partition), now)
            await sets.replace(partition, {}, outlived)
            done.evicted = len(outlived)
            done.purged = await _purge(sets, partition, now)
            for grown in _overgrown(_settled(sets, partition), now):
                done.compacted += await _compact(sets, partition, grown, now)
            done.merged = await _rewrite(sets, partition, _merges(_settled(sets, partition), now))
    return done


def _settled(sets: TrainingSets, partition: int) -> PartitionView:
    """What lies wholly before the places reached: what comes behind is not in any snapshot yet, and a newer version of
    a thing must not take the place of one that still counts there.
    """
    view = sets.view(partition)
    places = {topic.label: stored_offset(sets.table, topic, partition) for topic in DATA_TOPICS}
    settled = {
        folder_id: tuple(one for one in segments if one.last < places[one.topic_label])
        for folder_id, segments in view.segments.items()
    }
    return replace(view, segments=settled)


async def _rewrite(sets: TrainingSets, partition: int, rewrites: Iterator[Rewrite]) -> int:
    """Carry out rewrites, each computed in a thread; how many segments they took out."""
    gone = 0
    while rewrite := await asyncio.to_thread(next, rewrites, None):
        await sets.replace(partition, *rewrite)
        gone += len(rewrite[1])
    return gone


# ── Eviction ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _outlived(view: PartitionView, now: datetime) -> list[Segment]:
    """The segments in which everything is too old, as their keys alone tell."""
    found = []
    for folder_id in view.folders():
        for segment in view.segments[folder_id]:
            oldest = _bound(view, folder_id, segment.topic, now).oldest
            if oldest and segment.newest_ms < milliseconds(oldest):
                found.append(segment)
    return found


class Extent(NamedTuple):
    """How much there is of a topic in a folder."""

    records: float
    size: float

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Extent":
        """The whole of some segments."""
        return cls(sum(segment.records for segment in segments), sum(segment.size for segment in segments))


class Grown(NamedTuple):
    """What a folder holds of a topic."""

    folder_id: str
    topic: Topic
    segments: tuple[Segment, ...]

    @property
    def mark(self) -> bytes:
        """The key under which stands what was left of it by the last compaction."""
        return _COMPACTED + folder_prefix(self.folder_id) + self.topic.label.encode()


def _overgrown(view: PartitionView, now: datetime) -> list[Grown]:
    """What has outgrown twice its bound, and twice what was left of it last time: every record is read about twice."""
    found = []
    for folder_id, segments in view.segments.items():
        for topic, group in groupby(segments, key=lambda segment: segment.topic):
            grown = Grown(folder_id, topic, tuple(group))
            extent, bound = Extent.of(grown.segments), _bound(view, folder_id, topic, now)
            usual = Extent(NARROW_RECORDS, NARROW_BYTES) if bound == Bound() else Extent(bound.things, bound.size)
            if not _exceeds(extent, usual):
                continue
            mark = view.table.get(view.partition, grown.mark)
            if mark is None or _exceeds(extent, msgspec.json.decode(mark, type=Extent)):
                found.append(grown)
    return found


def _exceeds(extent: Extent, usual: Extent) -> bool:
    return extent.records > usual.records * _SLACK or extent.size > usual.size * _SLACK


async def _compact(sets: TrainingSets, partition: int, grown: Grown, now: datetime) -> int:
    """Rewrite the segments that hold something that no fold can need any more."""
    gone = await _rewrite(sets, partition, _compactions(sets.view(partition), grown, now))
    left = sets.view(partition).segments.get(grown.folder_id, ())
    extent = Extent.of([segment for segment in left if segment.topic is grown.topic])
    await sets.write(partition, {grown.mark: msgspec.json.encode(extent)})
    before = Extent.of(grown.segments)
    _log.info("compacted", folder=grown.folder_id, topic=grown.topic.label, before=before.records, left=extent.records)
    return gone


def _compactions(view: PartitionView, grown: Grown, now: datetime) -> Iterator[Rewrite]:
    # Without their words the records of a folder fit into memory all at once; with them, some segments do.
    tombstone = (_tombstone(record) for record in view.records(grown.segments))
    found = needed(tombstone, _bound(view, grown.folder_id, grown.topic, now))
    latest, sizes = (set(map(_place, records)) for records in (found.latest.values(), found.sizes))
    for start in range(0, len(grown.segments), _AT_ONCE):
        chunk = {
            segment: unpack(content) for segment, content in view.contents(grown.segments[start : start + _AT_ONCE])
        }
        copies = Counter(_place(record) for records in chunk.values() for record in records)
        kept: dict[Place, Record] = {}
        gone = []
        for segment, records in chunk.items():
            if all(copies[place] == 1 and place in latest for place in map(_place, records)):
                continue
            # What is left of a segment, and of those that hold copies of it, is written before it goes.
            gone.append(segment)
            kept |= {_place(record): record for record in records if _place(record) in latest}
            kept |= {_place(record): _tombstone(record) for record in records if _place(record) in sizes}
        yield dict(pack(grown.topic, [kept[place] for place in sorted(kept)])), gone


def _tombstone(record: Record) -> Record:
    return structs.replace(record, event=state_events.tombstone(record.event))


def _bound(view: PartitionView, folder_id: str, topic: Topic, now: datetime) -> Bound:
    return bound_of(topic, view.limits.of(folder_id), now - GRACE)


def _place(record: Record) -> Place:
    return record.offset, record.position


# ── Erasure ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _purge(sets: TrainingSets, partition: int, now: datetime) -> int:
    """Rewrite every segment that still carries what an erasure covers, once for each set of erasures.

    The mark is written again each day: the broker gives erased words up only when something is written after them, also
    to a quiet partition. A worker that has recovered from the changelog before that has them in its files.
    """
    erasures = sets.erasures(partition)
    mark = erasures.fingerprint + f"|{now:%Y-%m-%d}".encode()
    known = sets.table.get(partition, PURGED) or b""
    # Whoever takes a partition over looks at everything once, whatever the mark says: what a worker wrote that had lost
    # the partition may have come behind it.
    fresh = partition not in sets.purged
    if not erasures or (known == mark and not fresh):
        return 0
    foreign_write_count = sets.foreign_write_count[partition]
    purged = 0
    if fresh or not known.startswith(erasures.fingerprint):
        purged = await _rewrite(sets, partition, _purges(sets.view(partition), erasures))
    # Deleted values stay in RocksDB's files until these are merged. Marked after that: a crash before repeats it all.
    await asyncio.to_thread(sets.table.reclaim, partition)
    if sets.foreign_write_count[partition] == foreign_write_count:
        sets.purged.add(partition)
        if known != mark:
            await sets.write(partition, {PURGED: mark})
    return purged


def _purges(view: PartitionView, erasures: Erasures) -> Iterator[Rewrite]:
    for folder_id in view.folders():
        for segment in view.segments[folder_id]:
            pairs = [(record, erasures.applied(record)) for record in view.records([segment])]
            if any(record is not left for record, left in pairs):
                kept = [left for _, left in pairs if left is not None]
                yield dict(pack(segment.topic, kept)), [segment]


# ── Merging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _merges(view: PartitionView, now: datetime) -> Iterator[Rewrite]:
    """Narrow segments of a folder and a topic become wide ones.

    What is to be erased is not looked for here: ``_purge`` sees to that, and to what a foreign write brings back.
    """
    for folder_id, segments in view.segments.items():
        for topic in Topic:
            narrow = [one for one in segments if one.topic is topic and _is_narrow(one)]
            bound = _bound(view, folder_id, topic, now)
            for start in range(0, len(narrow), _AT_ONCE):
                chosen = narrow[start : start + _AT_ONCE]
                if len(chosen) >= FAN_IN:
                    yield dict(_merged(view, topic, chosen, bound)), chosen


def _merged(
    view: PartitionView, topic: Topic, segments: list[Segment], bound: Bound
) -> Iterator[tuple[Segment, bytes]]:
    if topic is not Topic.DOCUMENTS and all(one.last < other.first for one, other in pairwise(segments)):
        return joined(view.contents(segments))
    # Copies of the same records, or newer versions of the same documents.
    found = needed(view.records(segments), bound)
    return pack(topic, sorted((*found.latest.values(), *map(_tombstone, found.sizes)), key=_place))


def _is_narrow(segment: Segment) -> bool:
    return segment.records < NARROW_RECORDS and segment.size < NARROW_BYTES
