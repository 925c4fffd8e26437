"""Keeps the segments of a partition few, within bounds, and free of what was to be forgotten.

Each step rewrites segments that it has read, and deletes only those, after their successors are durable. Done twice,
done by two workers at once, or cut short anywhere, it comes to the same training sets.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from streams.erasures import Erasures
from streams.fold import CLOCK_SKEW, latest_of
from streams.segments import Segment, joined, milliseconds, pack
from streams.topics import Topic
from streams.training_sets import PURGED, PartitionView, TrainingSets

# Narrower than this, a segment is merged with its like once there are so many: each record is rewritten about
# log(wide / block) / log(fan-in) times, and a folder never has more than a few dozen narrow segments.
NARROW_RECORDS = 1_000
NARROW_BYTES = 128 * 1024
FAN_IN = 8
# Bounds the memory of a merge, should there be a great backlog.
_AT_ONCE = 64
# An export that is repeated after a crash asks for the state of a little while ago.
GRACE = timedelta(days=1)
# A folder is looked at for eviction by count or bytes only when it has outgrown its limit by this much: the look folds.
_SLACK = 1.2

Rewrite = tuple[dict[Segment, bytes], list[Segment]]


@dataclass
class Upkept:
    """What was done."""

    evicted: int = 0
    merged: int = 0
    purged: int = 0


async def keep_up(sets: TrainingSets, partition: int, now: datetime) -> Upkept:
    """Evict, purge and merge; gives way to an export.

    Raises:
        PartitionLostError: the partition is another worker's, and so is the rest of the work.
    """
    done = Upkept()
    if sets.steady(partition).locked():
        return done
    async with sets.steady(partition):
        for gone in await asyncio.to_thread(_outlived, sets.view(partition), now):
            await sets.replace(partition, {}, gone)
            done.evicted += len(gone)
        done.purged = await _purge(sets, partition, now)
        merges = _merges(sets.view(partition))
        while rewrite := await asyncio.to_thread(next, merges, None):
            await sets.replace(partition, *rewrite)
            done.merged += len(rewrite[1])
    return done


# ── Eviction ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _outlived(view: PartitionView, now: datetime) -> list[list[Segment]]:
    """For each folder the segments that no later fold can need."""
    found = []
    for folder_id in view.folders():
        cutoff = _cutoff(view, folder_id, now)
        oldest = {Topic.CHAT_LOGS: cutoff, Topic.FEEDBACK: cutoff - CLOCK_SKEW // timedelta(milliseconds=1)}
        gone = [one for one in view.segments[folder_id] if one.newest_ms < oldest.get(one.topic, 0)]
        if gone:
            found.append(gone)
    return found


def _cutoff(view: PartitionView, folder_id: str, now: datetime) -> int:
    """Milliseconds before which nothing in the folder can count any more."""
    limits = view.limits.of(folder_id)
    by_age = milliseconds(now - limits.max_age - GRACE)
    logs = [segment for segment in view.segments[folder_id] if segment.topic is Topic.CHAT_LOGS]
    many = sum(segment.records for segment in logs) > limits.max_examples * _SLACK
    large = sum(segment.size for segment in logs) > limits.max_bytes * _SLACK
    if not many and not large:
        return by_age
    kept = view.folder(folder_id, now).logs
    return max(by_age, milliseconds(kept[0].log.occurred_at)) if kept else by_age


# ── Erasure ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _purge(sets: TrainingSets, partition: int, now: datetime) -> int:
    """Rewrite every segment that still carries what an erasure covers, once for each set of erasures.

    The mark is written again each day: the broker gives erased words up only when something is written after them, also
    to a quiet partition. A worker that has recovered from the changelog before that has them in its files.
    """
    view = sets.view(partition)
    erasures = view.erasures()
    mark = erasures.fingerprint + f"|{now:%Y-%m-%d}".encode()
    known = view.table.get(partition, PURGED) or b""
    if not erasures or (known == mark and partition in sets.reclaimed):
        return 0
    purged = 0
    rewrites = iter(()) if known.startswith(erasures.fingerprint) else _purges(view, erasures)
    while rewrite := await asyncio.to_thread(next, rewrites, None):
        await sets.replace(partition, *rewrite)
        purged += len(rewrite[1])
    # Deleted values stay in RocksDB's files until these are merged. Marked after that: a crash before repeats it all.
    await asyncio.to_thread(view.table.reclaim, partition)
    sets.reclaimed.add(partition)
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


def _merges(view: PartitionView) -> Iterator[Rewrite]:
    """Narrow segments of a folder and a topic become wide ones.

    What is to be erased is not looked for here: ``_purge`` sees to that, and to what a foreign write brings back.
    """
    for segments in view.segments.values():
        for topic in Topic:
            narrow = [one for one in segments if one.topic is topic and _is_narrow(one)]
            for start in range(0, len(narrow), _AT_ONCE):
                chosen = narrow[start : start + _AT_ONCE]
                if len(chosen) < FAN_IN:
                    continue
                yield dict(_merged(view, topic, chosen)), chosen


def _merged(view: PartitionView, topic: Topic, segments: list[Segment]) -> Iterator[tuple[Segment, bytes]]:
    if topic is not Topic.DOCUMENTS and all(one.last < other.first for one, other in pairwise(segments)):
        yield from joined(view.contents(segments))
        return
    # Copies of the same records, or newer versions of the same documents: of each thing the latest stays.
    kept = latest_of(view.records(segments), Erasures())
    kept.sort(key=lambda record: (record.offset, record.position))
    yield from pack(topic, kept)


def _is_narrow(segment: Segment) -> bool:
    return segment.records < NARROW_RECORDS and segment.size < NARROW_BYTES
