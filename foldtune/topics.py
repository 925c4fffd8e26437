"""The topics, in the order of the data flow. All have the same number of partitions."""

from datetime import timedelta
from enum import Enum

# Above the brokers' default of 1 MiB: a dead letter is an event of up to that size plus its errors.
MAX_RECORD_BYTES = 2 * 1024 * 1024
# The brokers' default ``message.max.bytes``, and what they count beside key, headers and value of a record.
_DEFAULT_RECORD_BYTES, _RECORD_OVERHEAD = 1024 * 1024, 1024
# Brokers stamp what they append: the bound on the future, retention and compaction go by one clock, not by each
# producer's.
_STAMPED = {"message.timestamp.type": "LogAppendTime"}
_COMPACTED = _STAMPED | {"cleanup.policy": "compact"}
# Names that are erased must not stay for weeks: see ``CHANGELOG_CONFIG``.
_COMPACTION_LAG = timedelta(days=1)
_COMPACTED_DAILY = _COMPACTED | {
    "max.compaction.lag.ms": str(int(_COMPACTION_LAG.total_seconds() * 1000)),
    "segment.bytes": str(64 << 20),
}
# What is answered within seconds, in part with users' words: nobody needs it for longer.
_BRIEF = _STAMPED | {
    "cleanup.policy": "delete",
    "retention.ms": str(int(timedelta(hours=1).total_seconds() * 1000)),
    "retention.bytes": str(64 << 20),
    "segment.bytes": str(16 << 20),
}
# The brokers' retention.
_DEFAULT = _STAMPED | {"cleanup.policy": "delete"}
# The source of truth, from which lost state is rebuilt: unlimited until an operator sets a retention.
_UNLIMITED = _DEFAULT | {"retention.ms": "-1", "retention.bytes": "-1"}


class Topic(Enum):
    """A topic: its name without prefix, and its configuration on the brokers."""

    # Keyed by folder_id.
    CHAT_LOGS = ("chat-logs", _UNLIMITED)
    DOCUMENTS = ("documents", _UNLIMITED)
    FEEDBACK = ("feedback", _UNLIMITED)
    # Sent to every partition.
    ERASURES = ("erasures", _UNLIMITED)
    # To the partition that it is of.
    ERASURE_CONFIRMATIONS = ("erasure-confirmations", _UNLIMITED)
    # Keyed by folder_id, in the partition of the folder's training set; "" is the key of the partition's own record.
    FOLDER_STATS = ("folder-stats", _COMPACTED_DAILY)
    # Sent to every partition.
    PREVIEW_REQUESTS = ("preview-requests", _BRIEF)
    # Keyed by preview_id, in the partition that answers.
    PREVIEWS = ("previews", _BRIEF)
    # Sent to every partition.
    SNAPSHOT_COMMANDS = ("snapshot-commands", _DEFAULT)
    # Keyed by model name.
    FINE_TUNE_REQUESTS = ("fine-tune-requests", _UNLIMITED)
    SNAPSHOT_PARTS = ("snapshot-parts", _DEFAULT)
    TRAINING_PROGRESS = ("training-progress", _DEFAULT)
    MODEL_READY = ("model-ready", _UNLIMITED)
    POLICIES = ("policies", _COMPACTED)
    # Keyed by model name, and each change of a decision once more under a key of its own, for a year.
    POLICY_DECISIONS = (
        "policy-decisions",
        _COMPACTED_DAILY | {"cleanup.policy": "compact,delete", "retention.ms": str(366 * 24 * 3600 * 1000)},
    )
    # Keyed by ``review_key``.
    REVIEWS = ("model-reviews", _COMPACTED)
    # Keyed by ``request_key``, partitioned by model name.
    TRAINING_REPORTS = ("training-reports", _DEFAULT)
    FINE_TUNE_STATUS = ("fine-tune-status", _COMPACTED)
    TRAINING_JOBS = ("training-jobs", _UNLIMITED)
    # Keyed by what was changed or read.
    AUDIT = ("audit", _UNLIMITED)
    # Keyed like the rejected record.
    DEAD_LETTERS = ("dead-letters", _UNLIMITED | {"max.message.bytes": str(MAX_RECORD_BYTES)})

    def __init__(self, label: str, config: dict[str, str]) -> None:
        self.label = label
        self.config = config

    @property
    def max_record_bytes(self) -> int:
        """Bound of key, headers and value of a record that foldtune writes."""
        return int(self.config.get("max.message.bytes", _DEFAULT_RECORD_BYTES)) - _RECORD_OVERHEAD

    def named(self, prefix: str) -> str:
        """The topic's full name on the brokers."""
        return f"{prefix}{self.label}"


def request_key(model: str, request_id: str) -> str:
    """The key of a request's records, and the start of it: two models may use one id. Neither name has a slash."""
    return f"{model}/{request_id}"


def review_key(model: str, version: str, *, approved: bool) -> str:
    """The key of a review: an approval does not replace a rejection, whatever comes in what order."""
    return f"{model}/{version}/{'approved' if approved else 'rejected'}"


# The inputs of the training sets, co-partitioned by folder.
KEYED_BY_FOLDER = (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK)
DATA_TOPICS = (*KEYED_BY_FOLDER, Topic.ERASURES)

# Faust names a table's changelog by the application and the table.
TABLES = ("training-sets", "requests")


def changelogs(app_id: str) -> tuple[str, ...]:
    """The changelog topics of a worker's tables."""
    return tuple(f"{app_id}-{table}-changelog" for table in TABLES)


# Erased text must not stay in a changelog for weeks, as by default where little is written. The active segment, which
# brokers never compact, is bounded for the same reason (default: 1 GiB).
CHANGELOG_CONFIG = _COMPACTED_DAILY | {"max.message.bytes": str(MAX_RECORD_BYTES)}
# What is deleted from a changelog is gone from the brokers' disks within this time, also where nothing else is written:
# the worker's daily record closes the segment, which is compacted a day later at the latest; and a day for the cleaner.
COMPACTED_WITHIN = 3 * _COMPACTION_LAG
MAX_CHANGELOG_RECORD_BYTES = MAX_RECORD_BYTES - _RECORD_OVERHEAD

# What data is lost without: also a topic's own, other value is wrong. For all other keys a value that was set on the
# topic is the operator's choice.
REQUIRED_CONFIG = frozenset({"cleanup.policy", "max.message.bytes"})
