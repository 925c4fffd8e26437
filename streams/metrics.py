"""What a worker measures of itself, in the terms of Prometheus.

Counted by the block, never by the record; what the index of the training sets says is read when somebody asks.
"""

from prometheus_client import Counter, Histogram, disable_created_metrics

from foldtune.events import SnapshotPart
from foldtune.reasons import RejectedKind
from foldtune.topics import Topic

_SNAPSHOT_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)

# The time at which a counter began, as a series of its own beside each, tells nobody anything.
disable_created_metrics()  # type: ignore[no-untyped-call]

RECORDS = Counter("foldtune_records", "Events of the data topics taken in, durably.", ["topic"])
REJECTED = Counter("foldtune_rejected_records", "Events put aside as dead letters.", ["topic", "reason"])
MAINTENANCE = Counter("foldtune_upkeep_segments", "Segments taken out of the training sets, by what for.", ["action"])
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
