"""What a worker measures of itself, in the terms of Prometheus.

Counted by the block, never by the record; what the index of the training sets says is read when somebody asks.
"""

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client import Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from streams.events import SnapshotPart
from streams.records import RejectedKind
from streams.segments import Segment
from streams.topics import Topic

# Any text is a folder, so there may be any number of them; a worker shows its largest.
_FOLDERS_SHOWN = 200
_SNAPSHOT_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)

# The time at which a counter began, as a series of its own beside each, tells nobody anything.
disable_created_metrics()  # type: ignore[no-untyped-call]

RECORDS = Counter("foldtune_records", "Events of the data topics taken in, durably.", ["topic"])
REJECTED = Counter("foldtune_rejected_records", "Events put aside as dead letters.", ["topic", "reason"])
UPKEEP = Counter("foldtune_upkeep_segments", "Segments taken out of the training sets, by what for.", ["action"])
FOREIGN_WRITES = Counter("foldtune_foreign_writes", "Writes of another worker to a partition of this one, taken over.")
REQUESTS_ENDED = Counter("foldtune_requests_ended", "Fine-tune requests that came to their end.", ["state"])
SNAPSHOT_SECONDS = Histogram(
    "foldtune_snapshot_seconds", "Time to export one partition of a snapshot.", buckets=_SNAPSHOT_BUCKETS
)
SNAPSHOT_STORE_SECONDS = Histogram(
    "foldtune_snapshot_store_seconds", "The share of it in the object store.", buckets=_SNAPSHOT_BUCKETS
)


def count_rejected(topic: Topic, reason: RejectedKind) -> None:
    """Count one dead letter; what exactly was wrong stands in its headers."""
    REJECTED.labels(topic.label, reason).inc()


def observe_snapshot(part: SnapshotPart) -> None:
    """Note how long a part took that did not fail."""
    SNAPSHOT_SECONDS.observe(part.seconds)
    SNAPSHOT_STORE_SECONDS.observe(part.store_seconds)


class OwnedPartitions(Collector):
    """What is true of the partitions that the worker owns when it is asked; a lost partition leaves nothing behind."""

    def __init__(
        self,
        owned: Callable[[], list[int]],
        segments: Callable[[int], Mapping[str, Collection[Segment]] | None],
        lag: Callable[[], Mapping[tuple[Topic, int], int]],
    ) -> None:
        """``segments`` gives those of a partition by folder, where they are known; ``lag`` is as last measured."""
        self._owned = owned
        self._segments = segments
        self._lag = lag

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Reads memory alone, so that a scrape never waits."""
        owned = self._owned()
        count = GaugeMetricFamily("foldtune_partitions_owned", "Partitions that this worker owns and has recovered.")
        count.add_metric([], len(owned))
        lag = GaugeMetricFamily(
            "foldtune_lag_records", "Messages published and not yet taken in.", labels=["topic", "partition"]
        )
        for (topic, partition), records in self._lag().items():
            if partition in owned:
                lag.add_metric([topic.label, str(partition)], records)
        yield count
        yield lag
        yield from self._kept(owned)

    def _kept(self, owned: list[int]) -> Iterator[GaugeMetricFamily]:
        segments = GaugeMetricFamily("foldtune_segments", "Segments in the training sets.", labels=["partition"])
        logs: Tally[str] = Tally()
        for partition in owned:
            index = self._segments(partition)
            if index is None:
                continue
            segments.add_metric([str(partition)], sum(map(len, index.values())))
            for folder_id, found in index.items():
                if kept := sum([one.records for one in found if one.topic_label == Topic.CHAT_LOGS.label]):
                    logs[folder_id] += kept
        folders = GaugeMetricFamily(
            "foldtune_folder_logs",
            f"Chat logs kept, copies that are not merged yet included; the {_FOLDERS_SHOWN} largest folders.",
            labels=["folder"],
        )
        for folder_id, kept in logs.most_common(_FOLDERS_SHOWN):
            folders.add_metric([folder_id], kept)
        yield segments
        yield folders
