"""Keeps ``folder-stats``: counts the folders that have changed, one after the other, and publishes their figures."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from foldtune.events import FolderStats, FolderStatsRefreshed, TopicOffset
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.errors import OutdatedViewError
from streams.metrics import STATS_SECONDS
from streams.partitions.broker_clock import CLOCK
from streams.publishing.publisher import EventPublisher, OutgoingEvent
from streams.snapshots import folder_stats
from streams.snapshots.command_handler import DataOffsets
from streams.snapshots.export import SEGMENTS_PER_CALL, Call
from streams.snapshots.folder_stats import Figures, Summary
from streams.snapshots.selection import TOO_OLD
from streams.threads import EXPORTS, run_in
from streams.training_sets.erasures import Erasures
from streams.training_sets.store import PartitionView, TrainingSets

_log = structlog.get_logger()
# Counting takes at most this share of the time, so that ingestion does not notice it: the more there is to count, the
# older the figures become.
_SHARE = 0.2
# Logs become too old one by one: a folder is counted for that at most once in this time.
_EXPIRY = timedelta(hours=1)
# The event that says how old all figures of a partition are; no folder has this id.
REFRESHED_KEY = ""


@dataclass
class _Counted:
    # Of what was counted: segments, erasures, and how many logs came too late.
    fingerprint: int
    at: datetime
    expires_at: datetime
    summary: Summary


@dataclass
class _Partition:
    counted: dict[str, _Counted] = field(default_factory=dict)
    # Folders to count, and since when.
    changed: dict[str, datetime] = field(default_factory=dict)
    refreshed_at: datetime | None = None


class FolderStatsPublisher:
    """Counts the folders of the partitions that this worker owns, in the export process."""

    def __init__(
        self,
        sets: TrainingSets,
        offsets: DataOffsets,
        publisher: EventPublisher,
        settings: Settings,
        call: Call,
        *,
        now: Callable[[], datetime] = CLOCK.now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``call`` runs what computes, see ``ExportProcess``."""
        self._sets = sets
        self._offsets = offsets
        self._publisher = publisher
        self._settings = settings
        self._call = call
        self._now = now
        self._sleep = sleep
        self._partitions: dict[int, _Partition] = {}
        self._numbers = itertools.count()

    async def refresh(self, partition: int) -> None:
        """Count each folder that has changed, unless that was less than ``worker.stats_interval`` ago.

        Raises:
            PartitionLostError: another worker owns the partition now, and counts it.
        """
        state, interval = self._partitions.setdefault(partition, _Partition()), self._settings.worker.stats_interval
        now = self._now()
        for folder_id in self._sets.take_changed(partition):
            state.changed.setdefault(folder_id, now)
        for folder_id, counted in state.counted.items():
            if counted.expires_at <= now:
                state.changed.setdefault(folder_id, now)
        erasures = self._sets.erasures(partition).fingerprint() if state.changed else 0
        # Those first that have waited longest.
        for folder_id in sorted(state.changed, key=state.changed.__getitem__):
            counted_before = state.counted.get(folder_id)
            if counted_before is None or not now - interval < counted_before.at <= now:
                await self._count(partition, folder_id, state, erasures)
        await self._tell_age(partition, state, now)

    def summaries(self, partition: int) -> dict[str, Summary]:
        """The figures of the folders that were counted, of a partition that this worker owns."""
        counted = self._partitions[partition].counted if partition in self._partitions else {}
        return {folder_id: each.summary for folder_id, each in counted.items()}

    async def _count(self, partition: int, folder_id: str, state: _Partition, erasures: int) -> None:
        view, began, at = self._sets.view(partition), time.perf_counter(), self._now()
        segments = view.segments.get(folder_id, ())
        fingerprint = hash((segments, erasures, view.too_old(folder_id)))
        counted = state.counted.get(folder_id)
        if counted and counted.fingerprint == fingerprint and at < counted.expires_at:
            # After a rebalance, for example.
            del state.changed[folder_id]
            return
        # Without an await since the view, so that it holds every record below them.
        offsets = self._offsets.next_offsets(partition)
        changed_at = state.changed.pop(folder_id)
        try:
            figures = await run_in(EXPORTS, self._figures, view, folder_id, self._sets.erasures(partition), offsets, at)
        except (OutdatedViewError, OSError) as error:
            _log.info("folder not counted, will retry", partition=partition, error=str(error))
            state.changed[folder_id] = changed_at
            return
        too_old = {TOO_OLD: count} if (count := view.too_old(folder_id)) else {}
        stats = FolderStats(
            folder_id=folder_id,
            partition=partition,
            at=at,
            offsets=offsets,
            examples=figures.examples,
            documents=figures.documents,
            newest_log_at=figures.newest_log_at,
            labels=figures.labels,
            days=figures.days,
            earlier=figures.earlier,
            agents=figures.agents,
            other_agents=figures.other_agents,
            left_out=figures.left_out | too_old,
        )
        await self._publisher.publish((OutgoingEvent(Topic.FOLDER_STATS, stats, folder_id),), partition)
        oldest, max_age = figures.oldest_log_at, view.limits.of(folder_id).max_age
        expires_at = max(oldest + max_age, at + _EXPIRY) if oldest else datetime.max.replace(tzinfo=UTC)
        if segments:
            state.counted[folder_id] = _Counted(fingerprint, at, expires_at, Summary.of(figures))
        else:
            state.counted.pop(folder_id, None)
        seconds = time.perf_counter() - began
        STATS_SECONDS.observe(seconds)
        await self._sleep(seconds * (1 / _SHARE - 1))

    def _figures(
        self,
        view: PartitionView,
        folder_id: str,
        erasures: Erasures,
        offsets: tuple[TopicOffset, ...],
        as_of: datetime,
    ) -> Figures:
        number, segments = next(self._numbers), view.segments.get(folder_id, ())
        next_offsets = {offset.topic: offset.offset for offset in offsets}
        self._call(partial(folder_stats.begin, number, erasures, self._settings.strengths, next_offsets))
        for start in range(0, len(segments), SEGMENTS_PER_CALL):
            part = view.contents(segments[start : start + SEGMENTS_PER_CALL])
            contents = [(segment.topic_label, content) for segment, content in part]
            self._call(partial(folder_stats.add_segments, number, contents))
        return self._call(partial(folder_stats.finish_folder, number, folder_id, view.limits.of(folder_id), as_of))

    async def _tell_age(self, partition: int, state: _Partition, as_of: datetime) -> None:
        """Publish that all figures hold as of a moment, but those of the folders that wait."""
        since = min(state.changed.values(), default=None)
        told = state.refreshed_at
        if told is not None and told <= as_of < told + self._settings.worker.stats_interval:
            return
        refreshed = FolderStatsRefreshed(
            partition=partition,
            at=as_of,
            folders=len(state.counted),
            pending=len(state.changed),
            pending_since=since,
        )
        await self._publisher.publish((OutgoingEvent(Topic.FOLDER_STATS, refreshed, REFRESHED_KEY),), partition)
        state.refreshed_at = as_of
