"""The figures of folders: equal to an exact count, bounded, and counted again only where something has changed."""

import asyncio
import io
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pyarrow.parquet as pq
import pytest

from foldtune.commands.event_docs import LARGEST
from foldtune.events import (
    MAX_STATS_AGENTS,
    MAX_STATS_DAYS,
    FineTuneRequested,
    FolderStats,
    FolderStatsRefreshed,
    SnapshotCommand,
    TopicOffset,
)
from foldtune.settings import LabelWeights, Sets, Settings, WorkerSettings
from foldtune.testing import FakeClock, MemoryObjectStore
from foldtune.topics import DATA_TOPICS, Topic
from streams.publishing.publisher import EventPublisher, OutgoingRecord, outgoing_records
from streams.snapshots.command_handler import DataOffsets
from streams.snapshots.export import export
from streams.snapshots.folder_stats import figures
from streams.snapshots.stats_publisher import REFRESHED_KEY, FolderStatsPublisher
from streams.training_sets.fold import FolderSet, JudgedLog
from streams.training_sets.state_events import (
    ErasureRequested,
    StateEvent,
    StateRecord,
    Verdict,
)
from streams.training_sets.store import TrainingSets
from tests.histories import NOW, TOPICS, WEIGHTS, call_here, history, log
from tests.memory_table import MemoryTable

T = TypeVar("T")


class Worker:
    """Training sets with what publishes their figures."""

    def __init__(self, sets: Sets | None = None, interval: timedelta = timedelta(seconds=30)) -> None:
        self.clock = FakeClock(NOW)
        self.limits = sets or Sets(max_age=timedelta(days=30))
        self.sets = TrainingSets(MemoryTable(), self.limits)
        self.next_offsets: Counter[Topic] = Counter()
        self.sent: list[OutgoingRecord] = []
        self.slept: list[float] = []
        self.calls = 0
        settings = Settings(strengths=WEIGHTS, sets=self.limits, worker=WorkerSettings(stats_interval=interval))
        publisher = mock.create_autospec(EventPublisher, instance=True)
        publisher.publish.side_effect = self._publish
        offsets = mock.create_autospec(DataOffsets, instance=True)
        offsets.next_offsets.side_effect = self.offsets
        self.stats = FolderStatsPublisher(
            self.sets, offsets, publisher, settings, self._call, now=self.clock, sleep=self._sleep
        )

    def offsets(self, partition: int) -> tuple[TopicOffset, ...]:
        return tuple(
            TopicOffset(topic=topic.label, partition=partition, offset=self.next_offsets[topic])
            for topic in DATA_TOPICS
        )

    async def _publish(self, events: Any, partition: int) -> tuple[OutgoingRecord, ...]:
        self.sent += outgoing_records(events, partition)
        return ()

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def _call(self, function: Callable[[], T]) -> T:
        self.calls += 1
        return function()

    def add(self, *events: StateEvent) -> None:
        by_topic: dict[Topic, list[StateRecord]] = defaultdict(list)
        for event in events:
            topic = TOPICS[type(event)]
            by_topic[topic].append(StateRecord(self.next_offsets[topic], 0, event, 100))
            self.next_offsets[topic] += 1
        for topic, records in by_topic.items():
            asyncio.run(self.sets.add(0, topic, records))

    def refresh(self) -> list[str]:
        """Refresh; the folders that were counted."""
        before = len(self.sent)
        asyncio.run(self.stats.refresh(0))
        return sorted(record.key or "" for record in self.sent[before:] if record.key != REFRESHED_KEY)

    def of(self, folder_id: str) -> FolderStats:
        record = [record for record in self.sent if record.key == folder_id][-1]
        return FolderStats.model_validate_json(record.value)

    @property
    def refreshed(self) -> FolderStatsRefreshed:
        record = [record for record in self.sent if record.key == REFRESHED_KEY][-1]
        return FolderStatsRefreshed.model_validate_json(record.value)


@pytest.mark.parametrize("seed", range(2))
def test_figures_equal_the_rows_that_an_export_writes(seed: int, tmp_path: Path) -> None:
    worker, store = Worker(), MemoryObjectStore()
    events = list(history(seed))
    random.Random(seed).shuffle(events)
    worker.add(*events)
    asyncio.run(worker.sets.count_too_old(0, {"f": [1, 2]}))
    # One record is stored and not yet below the offsets: neither counts it.
    worker.add(log(999))
    worker.next_offsets[Topic.CHAT_LOGS] -= 1
    assert worker.refresh() == ["f", "g", "h"]
    seen = Counter[str]()
    for folder_id in ("f", "g", "h"):
        request = FineTuneRequested.model_validate(
            {"request_id": "r", "model": "m", "requested_at": NOW, "data": {"folders": (folder_id,)}}
        )
        command = SnapshotCommand(request=request, partition=0, issued_at=NOW)
        view = worker.sets.view(0)
        part = export(command, view, worker.offsets(0), store, WEIGHTS, call=call_here, folder=tmp_path)
        assert part.examples
        assert part.documents
        rows = pq.read_table(io.BytesIO(store.get(store.key(part.examples.uri)))).to_pylist()
        stats = worker.of(folder_id)
        assert (stats.examples, stats.documents) == (part.positives, part.documents.rows)
        assert stats.labels == Counter(row["label"] for row in rows)
        assert stats.left_out == {reason: count for reason, count in part.left_out.items() if count}
        by_day = Counter((row["occurred_at"].date(), row["label"]) for row in rows)
        assert {(day.day, name): count for day in stats.days for name, count in day.labels.items()} == by_day
        by_agent = Counter((row["agent_id"], row["label"]) for row in rows)
        assert {(agent.agent_id, name): n for agent in stats.agents for name, n in agent.labels.items()} == by_agent
        assert stats.offsets == worker.offsets(0)
        seen.update(stats.labels)
        seen.update(stats.left_out)
    assert set(seen) == {
        *("corrected", "liked", "cited", "retrieved", "disliked"),
        *("no label", "document deleted", "older than sets.max_age"),
    }


def test_the_quality_of_a_day_is_counted_over_its_logs() -> None:
    judged = [
        JudgedLog(log(1), Verdict(rating="like")),
        JudgedLog(log(2, cited="d2"), Verdict(rating="dislike")),
        JudgedLog(log(3, cited=None), None),
        JudgedLog(log(4), None),
    ]
    (day,) = figures(FolderSet("f", tuple(judged), (), frozenset()), LabelWeights()).days
    assert (day.logs, day.cited, day.cited_first, day.liked, day.disliked) == (4, 3, 2, 1, 1)


def test_figures_of_any_names_and_any_time_fit_into_a_quarter_of_a_record() -> None:
    worker = Worker(Sets(max_age=timedelta(days=3650)))
    logs = [
        log(number, occurred_at=NOW - timedelta(days=number), agent_id=f"{number:03d}".rjust(256, "\x01"))
        for number in range(MAX_STATS_DAYS + 60)
    ]
    worker.add(*logs, *(log(number, agent_id=logs[0].agent_id) for number in range(1000, 1010)))
    worker.refresh()
    stats = worker.of("f")
    assert len(stats.encode()) < LARGEST[Topic.FOLDER_STATS]
    assert (len(stats.days), len(stats.agents)) == (MAX_STATS_DAYS, MAX_STATS_AGENTS)
    assert stats.agents[0].agent_id == logs[0].agent_id
    assert stats.earlier
    # Nothing is lost of the sums.
    assert sum(day.labels["cited"] for day in (*stats.days, stats.earlier)) == stats.examples == len(logs) + 10
    assert sum(agent.labels["cited"] for agent in stats.agents) + stats.other_agents["cited"] == stats.examples
    assert stats.earlier.day < stats.days[0].day


def test_only_what_has_changed_is_counted_and_not_more_often_than_the_interval() -> None:
    worker = Worker()
    worker.add(log(1), log(2, "g"))
    assert worker.refresh() == ["f", "g"]
    assert worker.refresh() == []
    worker.add(log(3, "g"))
    worker.clock.advance(timedelta(seconds=29))
    assert worker.refresh() == []
    worker.clock.advance(timedelta(seconds=1))
    assert worker.refresh() == ["g"]
    assert worker.of("g").examples == 2
    # After a rebalance all might have changed, and nothing is decoded to see that it has not.
    worker.sets.invalidate()
    worker.clock.advance(timedelta(minutes=1))
    calls = worker.calls
    assert worker.refresh() == []
    assert worker.calls == calls


def test_the_age_of_all_figures_is_told_with_the_folders_that_wait() -> None:
    worker = Worker()
    worker.add(log(1), log(2, "g"))
    worker.refresh()
    refreshed = worker.refreshed
    assert (refreshed.at, refreshed.folders, refreshed.pending, refreshed.pending_since) == (NOW, 2, 0, None)
    worker.clock.advance(timedelta(seconds=20))
    worker.add(log(3))
    worker.refresh()
    # Not yet: an interval after the last.
    assert worker.refreshed.at == NOW
    worker.clock.advance(timedelta(seconds=9))
    worker.refresh()
    worker.clock.advance(timedelta(seconds=1))
    assert worker.refresh() == ["f"]
    assert worker.refreshed.at == NOW + timedelta(seconds=30)


def test_an_erasure_a_late_log_and_the_age_of_logs_are_changes() -> None:
    worker = Worker()
    worker.add(log(1, agent_id="x"), log(2, "g"), log(3, "g", occurred_at=NOW - timedelta(days=29, hours=23)))
    worker.refresh()
    assert [agent.agent_id for agent in worker.of("f").agents] == ["x"]
    worker.clock.advance(timedelta(minutes=2))
    worker.add(ErasureRequested("e", worker.clock(), "agent", "x"))
    assert worker.refresh() == ["f", "g"]
    assert (worker.of("f").agents, worker.of("f").examples) == ((), 0)
    worker.clock.advance(timedelta(minutes=2))
    asyncio.run(worker.sets.count_too_old(0, {"f": [7]}))
    assert worker.refresh() == ["f"]
    assert worker.of("f").left_out == {"older than sets.max_age": 1}
    assert worker.of("g").examples == 2
    worker.clock.advance(timedelta(hours=1))
    assert worker.refresh() == ["g"]
    assert worker.of("g").examples == 1


def test_a_folder_that_is_gone_is_told_with_zeros() -> None:
    worker = Worker()
    worker.add(log(1))
    worker.refresh()
    worker.clock.advance(timedelta(minutes=1))
    asyncio.run(worker.sets.replace(0, {}, worker.sets.view(0).segments["f"]))
    assert worker.refresh() == ["f"]
    assert (worker.of("f").examples, worker.of("f").days, worker.refreshed.folders) == (0, (), 0)


def test_counting_takes_at_most_a_fifth_of_the_time() -> None:
    worker = Worker()
    worker.add(log(1), log(2, "g"))
    with mock.patch("streams.snapshots.stats_publisher.time.perf_counter", side_effect=[0.0, 2.0, 10.0, 10.5]):
        worker.refresh()
    assert worker.slept == [8.0, 2.0]


def test_a_count_that_fails_is_repeated() -> None:
    worker = Worker()
    worker.add(log(1))
    with mock.patch.object(worker, "_call", side_effect=OSError("the export process was killed")):
        worker.stats._call = worker._call
        assert worker.refresh() == []
    assert worker.refreshed.pending == 1
    worker.stats._call = call_here
    assert worker.refresh() == ["f"]
