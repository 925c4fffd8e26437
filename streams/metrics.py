"""A worker's Prometheus metrics.

Counters are updated once per block, never per record. The gauges of the training sets are in
``streams.worker.owned_partitions``, which computes them at the time of the scrape.
"""

from typing import get_args

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from foldtune.events import SnapshotPart, State
from foldtune.reasons import RejectedKind
from foldtune.topics import Topic

_SNAPSHOT_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)

# Otherwise every counter has a second series with its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]

RECORDS = Counter("foldtune_records", "Records of the data topics ingested, durably.", ["topic"])
REJECTED = Counter("foldtune_rejected_records", "Records sent to the dead letters.", ["topic", "reason"])
MAINTENANCE = Counter(
    "foldtune_upkeep_segments", "Segments removed from the training sets, by maintenance action.", ["action"]
)
NOT_KEPT = Counter(
    "foldtune_records_not_kept",
    "Valid records that no training set keeps: older than sets.max_age when they arrived (too_old) or by now "
    "(expired), beyond sets.max_examples or sets.max_bytes (over_bound), or logs with the log_id of a newer one of "
    "another agent in the folder (replaced).",
    ["topic", "reason"],
)
LOST_RECORDS = Counter(
    "foldtune_lost_records",
    "Records that a topic no longer has: before they were read (expired; also of a changelog, before this worker's "
    "database had them), or since (truncated, recreated).",
    ["topic", "cause"],
)
TOPIC_MISCONFIGURED = Gauge(
    "foldtune_topic_misconfigured",
    "1 for a setting of a topic that is not as it should be; the log says what it is, and what it should be.",
    ["topic", "setting"],
)
FOREIGN_WRITES = Counter("foldtune_foreign_writes", "Own writes that found and applied writes of another worker.")
REMOVED_STORES = Counter(
    "foldtune_removed_stores",
    "Partitions' local databases that were removed and are recovered from the changelog: damaged, ahead of it, of its "
    "former self (outdated), or of one that was deleted.",
    ["reason"],
)
RESTORED_CHANGELOGS = Counter(
    "foldtune_restored_changelogs",
    "Changelogs of a partition that had lost their end and were written again from the owner's database.",
    ["table"],
)
CLOCK_SKEW = Gauge(
    "foldtune_clock_skew_seconds", "The worker's clock less the brokers', as of the last event that it published."
)
PARTITIONS = Gauge("foldtune_partitions", "Partitions of each topic, as configured.")
REBALANCES = Counter("foldtune_rebalances", "Rebalances of the consumer group that this worker took part in.")
REQUESTS_ENDED = Counter("foldtune_requests_ended", "Fine-tune requests that reached a final state.", ["state"])
SNAPSHOT_SECONDS = Histogram(
    "foldtune_snapshot_seconds", "Time to export one partition of a snapshot.", buckets=_SNAPSHOT_BUCKETS
)
SNAPSHOT_STORE_SECONDS = Histogram(
    "foldtune_snapshot_store_seconds", "The part of it spent on the object store.", buckets=_SNAPSHOT_BUCKETS
)
STATS_SECONDS = Histogram(
    "foldtune_folder_stats_seconds", "Time to count one folder for folder-stats.", buckets=_SNAPSHOT_BUCKETS
)
PREVIEW_SECONDS = Histogram(
    "foldtune_preview_seconds", "Time to answer a preview of one partition.", buckets=_SNAPSHOT_BUCKETS
)
SKIPPED_PREVIEWS = Counter("foldtune_skipped_previews", "Previews of a partition given up after their time was over.")
SKIPPED_RECORDS = Counter(
    "foldtune_skipped_records",
    "Invalid records of a topic that other programs write and no dead letter is made of: what was valid before counts.",
    ["topic"],
)
REFUSED_RECORDS = Counter(
    "foldtune_refused_records", "Records of the worker that could not be written; they are dead letters.", ["topic"]
)
LOST_DEAD_LETTERS = Counter("foldtune_lost_dead_letters", "Dead letters that the brokers refused, without a value too.")
FAILED_TIMERS = Counter("foldtune_failed_timers", "Timers that met an unexpected error, once per partition.", ["timer"])

# From zero on, so that the first one is an increase.
for _topic, _reasons in (
    (Topic.CHAT_LOGS, ("too_old", "expired", "over_bound", "replaced")),
    (Topic.FEEDBACK, ("expired", "over_bound")),
):
    for _reason in _reasons:
        NOT_KEPT.labels(_topic.label, _reason)
for _topic in Topic:
    REFUSED_RECORDS.labels(_topic.label)
    for _reason in get_args(RejectedKind):
        REJECTED.labels(_topic.label, _reason)
    for _cause in ("expired", "truncated", "recreated"):
        LOST_RECORDS.labels(_topic.label, _cause)
    TOPIC_MISCONFIGURED.labels(_topic.label, "partitions")
for _reason in ("damaged", "ahead", "outdated", "deleted"):
    REMOVED_STORES.labels(_reason)
for _table in ("training-sets", "requests"):
    RESTORED_CHANGELOGS.labels(_table)
    LOST_RECORDS.labels(f"{_table}-changelog", "expired")
for _topic in (Topic.POLICIES, Topic.REVIEWS):
    SKIPPED_RECORDS.labels(_topic.label)
for _timer in ("tick", "policy", "maintenance", "folder-stats", "policies"):
    FAILED_TIMERS.labels(_timer)
for _state in State:
    if _state.terminal:
        REQUESTS_ENDED.labels(_state.value)


def count_rejected(topic: Topic, reason: RejectedKind) -> None:
    """Count one dead letter; its headers have the error."""
    REJECTED.labels(topic.label, reason).inc()


def observe_snapshot(part: SnapshotPart) -> None:
    """Observe the duration of a successful export."""
    SNAPSHOT_SECONDS.observe(part.seconds)
    SNAPSHOT_STORE_SECONDS.observe(part.store_seconds)
