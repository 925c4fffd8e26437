"""The topics, by their place in the way of the data. All have the same number of partitions."""

from enum import Enum

_COMPACTED = {"cleanup.policy": "compact"}
# Chat logs and documents are the source of truth that a lost state is rebuilt from: kept until an operator says less.
_DEFAULT: dict[str, str] = {}
_KEPT = {"retention.ms": "-1"}


class Topic(Enum):
    """A topic's name and its settings on the broker."""

    # Keyed by folder_id.
    CHAT_LOGS = ("chat-logs", _KEPT)
    DOCUMENTS = ("documents", _KEPT)
    FEEDBACK = ("feedback", _KEPT)
    # Sent to every partition.
    ERASURES = ("erasures", _KEPT)
    SNAPSHOT_COMMANDS = ("snapshot-commands", _DEFAULT)
    # Keyed by model name.
    FINE_TUNE_REQUESTS = ("fine-tune-requests", _KEPT)
    SNAPSHOT_PARTS = ("snapshot-parts", _DEFAULT)
    TRAINING_PROGRESS = ("training-progress", _DEFAULT)
    MODEL_READY = ("model-ready", _KEPT)
    # Keyed by request_id, partitioned by model name.
    TRAINING_REPORTS = ("training-reports", _DEFAULT)
    FINE_TUNE_STATUS = ("fine-tune-status", _COMPACTED)
    TRAINING_JOBS = ("training-jobs", _KEPT)
    # Keyed as the original was.
    DEAD_LETTERS = ("dead-letters", {"max.message.bytes": str(2 * 1024 * 1024), "retention.ms": "-1"})

    def __init__(self, label: str, config: dict[str, str]) -> None:
        self.label = label
        self.config = config

    def named(self, prefix: str) -> str:
        """The topic's name on the broker."""
        return f"{prefix}{self.label}"


# What the rolling training sets are made of, in one co-partitioned group.
DATA_TOPICS = (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK, Topic.ERASURES)
