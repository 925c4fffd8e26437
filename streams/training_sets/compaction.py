"""Maintenance of a partition's segments: keeps them few, within their bounds, and free of erased content.

Each step rewrites segments that it has read, and deletes only those, after their replacements are durable. Run twice,
run by two workers at once, or interrupted anywhere, it leaves the same training sets.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from typing import NamedTuple

import msgspec
import structlog
from msgspec import structs

from foldtune.bounds import epoch_ms
from foldtune.topics import DATA_TOPICS, Topic
from streams.errors import OutdatedViewError
from streams.metrics import NOT_KEPT
from streams.partitions.positions import stored_position
from streams.threads import MAINTENANCE, run_in
from streams.training_sets import state_events
from streams.training_sets.erasures import Erasures, superseded_erasures, unconfirmed_erasures
from streams.training_sets.fold import LogAuthors, Retained, RetentionBound, entity_id, retained, retention_bound
from streams.training_sets.segments import Segment, concatenate, folder_prefix, pack, unpack
from streams.training_sets.state_events import NO_FOLDER, StateRecord
from streams.training_sets.store import SWEPT_KEY, PartitionView, TrainingSets

_log = structlog.get_logger()
# Segments below both sizes are merged once there are FAN_IN of them: each record is rewritten about
# log(small / block) / log(fan-in) times, and a folder never has more than a few dozen small segments.
SMALL_RECORDS = 1_000
SMALL_BYTES = 128 * 1024
FAN_IN = 8
# Segments read at once; bounds the memory of a rewrite when there is a large backlog.
_MAX_SEGMENTS = 64
# An export that is repeated after a crash asks for the training set of a little while ago.
GRACE = timedelta(days=1)
# A folder is compacted when it exceeds its bound, and what the last compaction left, this many times.
_GROWTH_FACTOR = 2
# Prefix of the keys that store what the last compaction left.
_COMPACTED_PREFIX = b"c|"
# When new erasures were last applied to every segment: what ``Sweeping.interval`` counts from. Not the daily marker.
_APPLIED_KEY = b"x|applied"
# The mark of version 0.1.
_PURGED_KEY = b"x|purged"

# Offset and position: identifies a record in its topic and partition.
StateRecordId = tuple[int, int]
# Replacements with their content, and the segments to delete.
Rewrite = tuple[dict[Segment, bytes], list[Segment]]
# Publishes that erasures, by their ids, are applied to a whole partition, and how many records they changed.
Confirm = Callable[[int, Sequence[str], int], Awaitable[None]]


async def _tell_nobody(partition: int, erasure_ids: Sequence[str], records: int) -> None:
    """For maintenance that no one waits for."""


@dataclass(frozen=True)
class Sweeping:
    """When new erasures are applied to the segments that are there, and who is told."""

    interval: timedelta = timedelta(0)
    confirm: Confirm = _tell_nobody


@dataclass
class MaintenanceCounts:
    """The number of segments deleted, by reason."""

    evicted: int = 0
    purged: int = 0
    compacted: int = 0
    merged: int = 0


async def maintain(
    sets: TrainingSets,
    partition: int,
    now: datetime,
    as_of: datetime | None = None,
    sweeping: Sweeping | None = None,
) -> MaintenanceCounts:
    """Evict, erase, compact and merge; does nothing while an export holds the partition.

    ``as_of`` is the time at which records count as too old; by default ``now``.

    Raises:
        PartitionLostError: another worker owns the partition now, and continues.
    """
    counts, as_of = MaintenanceCounts(), as_of or now
    if sets.rewrite_lock(partition).locked():
        return counts
    async with sets.rewrite_lock(partition):
        with suppress(OutdatedViewError):
            expired = _expired_segments(_committed_view(sets, partition), as_of)
            await sets.replace(partition, {}, expired)
            counts.evicted = len(expired)
            for segment in expired:
                NOT_KEPT.labels(segment.topic_label, "expired").inc(segment.record_count)
            counts.purged = await _sweep(sets, partition, now, sweeping or Sweeping())
            for group in _outgrown(_committed_view(sets, partition), as_of):
                counts.compacted += await _compact(sets, partition, group, as_of)
            counts.merged = await _rewrite(sets, partition, _merge_rewrites(_committed_view(sets, partition), as_of))
    return counts


def _committed_view(sets: TrainingSets, partition: int) -> PartitionView:
    """The segments that lie wholly below the stored offsets.

    Exports leave out records from there on, so a newer version of an entity there must not replace an older one yet.
    """
    view = sets.view(partition)
    next_offsets = {topic.label: stored_position(sets.table, topic, partition).state_offset for topic in DATA_TOPICS}
    committed = {
        folder_id: tuple(segment for segment in segments if segment.last_offset < next_offsets[segment.topic_label])
        for folder_id, segments in view.segments.items()
    }
    return replace(view, segments=committed)


async def _rewrite(sets: TrainingSets, partition: int, rewrites: Iterator[Rewrite]) -> int:
    """Apply rewrites, each computed in a thread; returns the number of segments that they deleted."""
    deleted = 0
    while rewrite := await run_in(MAINTENANCE, next, rewrites, None):
        await sets.replace(partition, *rewrite)
        deleted += len(rewrite[1])
    return deleted


# ── Eviction ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _expired_segments(view: PartitionView, as_of: datetime) -> list[Segment]:
    """The segments all of whose records are too old, by their keys alone."""
    expired = []
    for folder_id in view.folder_ids():
        for segment in view.segments[folder_id]:
            oldest = _bound(view, folder_id, segment.topic, as_of).oldest
            if oldest and segment.newest_ms < epoch_ms(oldest):
                expired.append(segment)
    return expired


# ── Compaction ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Volume(NamedTuple):
    """The records and bytes of some segments."""

    records: float
    size: float

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Volume":
        """The sum over segments."""
        return cls(sum(segment.record_count for segment in segments), sum(segment.size for segment in segments))

    def outgrows(self, reference: "Volume") -> bool:
        """Whether records or bytes exceed the reference by the growth factor."""
        return self.records > reference.records * _GROWTH_FACTOR or self.size > reference.size * _GROWTH_FACTOR


class SegmentGroup(NamedTuple):
    """The segments of a folder and a topic."""

    folder_id: str
    topic: Topic
    segments: tuple[Segment, ...]

    @property
    def compacted_key(self) -> bytes:
        """The key under which the volume that the last compaction left is stored."""
        return _COMPACTED_PREFIX + folder_prefix(self.folder_id) + self.topic.label.encode()


def _outgrown(view: PartitionView, as_of: datetime) -> list[SegmentGroup]:
    """The groups that outgrow their bound and the last compaction's result, so every record is read about twice."""
    outgrown = []
    for folder_id, segments in view.segments.items():
        for topic, of_topic in groupby(segments, key=lambda segment: segment.topic):
            group = SegmentGroup(folder_id, topic, tuple(of_topic))
            volume, bound = Volume.of(group.segments), _bound(view, folder_id, topic, as_of)
            unbounded = bound == RetentionBound()
            allowed = Volume(SMALL_RECORDS, SMALL_BYTES) if unbounded else Volume(bound.max_items, bound.max_bytes)
            if not volume.outgrows(allowed):
                continue
            compacted = view.table.get(view.partition, group.compacted_key)
            if compacted is None or volume.outgrows(msgspec.json.decode(compacted, type=Volume)):
                outgrown.append(group)
    return outgrown


async def _compact(sets: TrainingSets, partition: int, group: SegmentGroup, as_of: datetime) -> int:
    """Rewrite the segments with records that no fold can depend on any more."""
    deleted = await _rewrite(sets, partition, _compaction_rewrites(sets.view(partition), group, as_of))
    segments = sets.view(partition).segments.get(group.folder_id, ())
    after = Volume.of([segment for segment in segments if segment.topic is group.topic])
    await sets.write(partition, {group.compacted_key: msgspec.json.encode(after)})
    _log.info(
        "segments compacted",
        partition=partition,
        folder=group.folder_id,
        topic=group.topic.label,
        records_before=Volume.of(group.segments).records,
        records_after=after.records,
    )
    return deleted


def _compaction_rewrites(view: PartitionView, group: SegmentGroup, as_of: datetime) -> Iterator[Rewrite]:
    # As tombstones all records of a folder fit into memory at once; with their content, those of some segments do.
    authors = LogAuthors()
    tombstones = [_tombstone(record) for record in _noted(view.records(group.segments), authors)]
    bound = _bound(view, group.folder_id, group.topic, as_of)
    selection = retained(tombstones, bound)
    _count_not_kept(group.topic, tombstones, selection, bound)
    NOT_KEPT.labels(group.topic.label, "replaced").inc(authors.replaced(selection.latest))
    latest, size_only = _ids(selection.latest.values()), _ids(selection.size_only)
    for start in range(0, len(group.segments), _MAX_SEGMENTS):
        chunk = {
            segment: unpack(content)
            for segment, content in view.contents(group.segments[start : start + _MAX_SEGMENTS])
        }
        copies = Counter(_id(record) for records in chunk.values() for record in records)
        remaining: dict[StateRecordId, StateRecord] = {}
        obsolete = []
        for segment, records in chunk.items():
            if all(copies[record_id] == 1 and record_id in latest for record_id in map(_id, records)):
                continue
            # Its retained records, and those of segments with copies of them, are written before it is deleted.
            obsolete.append(segment)
            remaining |= {_id(record): record for record in records if _id(record) in latest}
            remaining |= {_id(record): _tombstone(record) for record in records if _id(record) in size_only}
        yield dict(pack(group.topic, [remaining[record_id] for record_id in sorted(remaining)])), obsolete


def _count_not_kept(
    topic: Topic, tombstones: Iterable[StateRecord], selection: Retained, bound: RetentionBound
) -> None:
    """Count the logs or verdicts, not their older versions, that are beyond a bound."""
    newest: dict[str, datetime] = {}
    for record in tombstones:
        if (entity := entity_id(record.event)) not in selection.latest:
            newest[entity] = max(record.event.occurred_at, newest.get(entity, record.event.occurred_at))
    expired = sum(bound.oldest is not None and moment < bound.oldest for moment in newest.values())
    NOT_KEPT.labels(topic.label, "expired").inc(expired)
    NOT_KEPT.labels(topic.label, "over_bound").inc(len(newest) - expired)


def _noted(records: Iterable[StateRecord], authors: LogAuthors) -> Iterator[StateRecord]:
    for record in records:
        authors.note(record.event)
        yield record


def _bound(view: PartitionView, folder_id: str, topic: Topic, as_of: datetime) -> RetentionBound:
    return retention_bound(topic, view.limits.of(folder_id), as_of - GRACE)


def _tombstone(record: StateRecord) -> StateRecord:
    return structs.replace(record, event=state_events.tombstone(record.event))


def _id(record: StateRecord) -> StateRecordId:
    return record.offset, record.position


def _ids(records: Iterable[StateRecord]) -> set[StateRecordId]:
    return set(map(_id, records))


# ── Erasure ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _sweep(sets: TrainingSets, partition: int, now: datetime, sweeping: Sweeping) -> int:
    """Apply all erasures to every segment, and confirm those that are new; returns how many segments it rewrote.

    What is new waits until ``sweeping.interval`` after the last sweep: each reads all segments and rewrites files.
    Exports and what is ingested are without erased content before it.
    """
    erasures = sets.erasures(partition)
    if not erasures:
        return 0
    unconfirmed, named = unconfirmed_erasures(sets.table, partition), sets.view(partition).named_erasures()
    applied_at, swept_at = _time_at(sets, partition, _APPLIED_KEY), _time_at(sets, partition, SWEPT_KEY)
    # Not one of the future: it is of a clock that went wrong.
    is_due = applied_at is None or not now - sweeping.interval < applied_at <= now
    # A new owner sweeps once, whatever the marker says: a zombie (``streams.partitions``) may have written after it.
    is_full = partition not in sets.swept or (is_due and bool(unconfirmed or named))
    # The marker is written again every day: the broker compacts erased text away only when newer records follow, in a
    # quiet partition's changelog too. A worker that recovered before that has the text in its files.
    is_daily = swept_at is None or swept_at.date() != now.date()
    if not (is_full or is_daily):
        return 0
    foreign_writes = sets.foreign_write_count[partition]
    rewritten, counts = 0, Counter[str]()
    if is_full:
        # 1. Replace erasures that version 0.1 stored by name.
        if named:
            await sets.write(partition, sets.erasure_rules.changes(named))
            obsolete = sets.view(partition).segments.get(NO_FOLDER, ())
            await sets.replace(partition, {}, obsolete)
            unconfirmed = unconfirmed_erasures(sets.table, partition)
        # 2. Write the segments without the erased content, then delete the old ones.
        rewritten = await _rewrite(sets, partition, _sweep_rewrites(sets.view(partition), erasures, counts))
    # 3. Compact RocksDB's files, which hold deleted values until then.
    await run_in(MAINTENANCE, sets.table.reclaim, partition)
    if sets.foreign_write_count[partition] != foreign_writes:
        return rewritten
    # 4. Confirm, then write the marker: after a crash before it everything is repeated, as after foreign writes.
    sets.swept.add(partition)
    changes: dict[bytes, bytes | None] = {}
    if is_full and unconfirmed:
        await sweeping.confirm(partition, sorted(set(unconfirmed.values())), counts["records"])
        changes = dict.fromkeys((*unconfirmed, *superseded_erasures(sets.table, partition)))
        changes[_APPLIED_KEY] = now.isoformat().encode()
    if changes or is_daily:
        await sets.write(partition, {SWEPT_KEY: now.isoformat().encode(), _PURGED_KEY: None, **changes})
    return rewritten


def _time_at(sets: TrainingSets, partition: int, key: bytes) -> datetime | None:
    with suppress(ValueError):
        return datetime.fromisoformat((sets.table.get(partition, key) or b"").decode())
    return None


def _sweep_rewrites(view: PartitionView, erasures: Erasures, counts: Counter[str]) -> Iterator[Rewrite]:
    for folder_id in view.folder_ids():
        for segment in view.segments[folder_id]:
            pairs = [(record, erasures.apply(record)) for record in view.records([segment])]
            if changed := sum(record is not after for record, after in pairs):
                counts["records"] += changed
                yield dict(pack(segment.topic, [after for _, after in pairs])), [segment]


# ── Merging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _merge_rewrites(view: PartitionView, as_of: datetime) -> Iterator[Rewrite]:
    """Small segments of a folder and a topic become large ones.

    Erasures are not applied here: ``_sweep`` does that, also to what foreign writes bring back.
    """
    for folder_id, segments in view.segments.items():
        for topic in Topic:
            small = [segment for segment in segments if segment.topic is topic and _is_small(segment)]
            bound = _bound(view, folder_id, topic, as_of)
            for start in range(0, len(small), _MAX_SEGMENTS):
                chunk = small[start : start + _MAX_SEGMENTS]
                if len(chunk) >= FAN_IN:
                    yield dict(_merge(view, topic, chunk, bound)), chunk


def _merge(
    view: PartitionView, topic: Topic, segments: list[Segment], bound: RetentionBound
) -> Iterator[tuple[Segment, bytes]]:
    overlap = any(former.last_offset >= latter.first_offset for former, latter in pairwise(segments))
    if topic is not Topic.DOCUMENTS and not overlap:
        return concatenate(view.contents(segments))
    # Drops duplicate records and older versions of documents.
    authors = LogAuthors()
    selection = retained(_noted(view.records(segments), authors), bound)
    NOT_KEPT.labels(topic.label, "replaced").inc(authors.replaced(selection.latest))
    return pack(topic, sorted((*selection.latest.values(), *map(_tombstone, selection.size_only)), key=_id))


def _is_small(segment: Segment) -> bool:
    return segment.record_count < SMALL_RECORDS and segment.size < SMALL_BYTES
