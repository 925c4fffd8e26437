"""Metrics of the partitions that a worker owns at the time of the scrape."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from foldtune.topics import Topic
from streams.training_sets.segments import Segment

# Any text can be a folder id, so their number is unbounded; a worker exports its largest folders.
_MAX_FOLDERS = 200


class OwnedPartitions(Collector):
    """Exports what a worker owns at the time of the scrape; a lost partition leaves no series behind."""

    def __init__(
        self,
        owned_partitions: Callable[[], list[int]],
        segments: Callable[[int], Mapping[str, Collection[Segment]] | None],
        lag: Callable[[], Mapping[tuple[Topic, int], int]],
        seconds_without: Callable[[], float],
    ) -> None:
        """``segments`` returns a partition's segments by folder, ``None`` unless cached; ``lag`` the last measured.

        ``seconds_without`` is for how long the worker has had no partition that it should have.
        """
        self._owned_partitions = owned_partitions
        self._segments = segments
        self._lag = lag
        self._seconds_without = seconds_without

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Reads memory alone, so that a scrape never waits."""
        owned = self._owned_partitions()
        count = GaugeMetricFamily("foldtune_partitions_owned", "Partitions that this worker owns and has recovered.")
        count.add_metric([], len(owned))
        yield count
        without = GaugeMetricFamily(
            "foldtune_seconds_without_partitions",
            "Time without partitions that are owned and recovered; 0 also while the group has none for this worker.",
        )
        without.add_metric([], self._seconds_without())
        yield without
        lag = GaugeMetricFamily(
            "foldtune_lag_records", "Records published and not yet consumed.", labels=["topic", "partition"]
        )
        for (topic, partition), records in self._lag().items():
            if partition in owned:
                lag.add_metric([topic.label, str(partition)], records)
        yield lag
        yield from self._training_sets(owned)

    def _training_sets(self, owned: list[int]) -> Iterator[GaugeMetricFamily]:
        segments = GaugeMetricFamily("foldtune_segments", "Segments in the training sets.", labels=["partition"])
        log_counts: Counter[str] = Counter()
        for partition in owned:
            index = self._segments(partition)
            if index is None:
                continue
            segments.add_metric([str(partition)], sum(map(len, index.values())))
            for folder_id, group in index.items():
                count = sum([segment.record_count for segment in group if segment.topic_label == Topic.CHAT_LOGS.label])
                if count:
                    log_counts[folder_id] += count
        yield segments
        folders = GaugeMetricFamily(
            "foldtune_folder_logs",
            "Chat logs in the training sets, with unmerged copies and what is left of erased ones; "
            f"the {_MAX_FOLDERS} largest folders.",
            labels=["folder"],
        )
        for folder_id, count in log_counts.most_common(_MAX_FOLDERS):
            folders.add_metric([folder_id], count)
        yield folders
