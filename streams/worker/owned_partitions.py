"""Metrics of the partitions that a worker owns at the moment it is asked."""

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from foldtune.topics import Topic
from streams.training_sets.segments import Segment

# Any text is a folder, so there may be any number of them; a worker shows its largest.
_FOLDERS_SHOWN = 200


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
                if kept := sum([one.record_count for one in found if one.topic_label == Topic.CHAT_LOGS.label]):
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
