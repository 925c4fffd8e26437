"""Who may do what on the brokers: one user for each part, with the ACLs that it needs and no others.

Kafka lets whoever may read, write or alter a topic describe it. No part needs an operation on the cluster or a
transactional id: producers are not idempotent, and topics are created by name.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from foldtune.settings import Settings
from foldtune.topics import DATA_TOPICS, Topic, changelogs


class Part(StrEnum):
    """A part of the system with a user of its own."""

    AGENT = "agent"
    INGEST = "ingest"
    WORKER = "worker"
    LAUNCHER = "launcher"
    TRAINER = "trainer"
    DEPLOYER = "deployer"
    NOTIFIER = "notifier"
    API = "api"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Rights:
    """The topics that a part uses."""

    reads: tuple[Topic, ...] = ()
    writes: tuple[Topic, ...] = ()
    # Compares their configuration with ours, ...
    checks: tuple[Topic, ...] = ()
    # ... or also creates and alters them.
    manages: tuple[Topic, ...] = ()


_INPUTS = (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK)
RIGHTS: Mapping[Part, Rights] = {
    # The SDK in an agent's process.
    Part.AGENT: Rights(writes=(Topic.CHAT_LOGS, Topic.FEEDBACK)),
    # What publishes documents, and ``foldtune import``.
    Part.INGEST: Rights(writes=_INPUTS),
    Part.WORKER: Rights(
        reads=(
            *DATA_TOPICS,
            *(Topic.SNAPSHOT_COMMANDS, Topic.FINE_TUNE_REQUESTS, Topic.SNAPSHOT_PARTS, Topic.TRAINING_PROGRESS),
            *(Topic.TRAINING_REPORTS, Topic.FINE_TUNE_STATUS, Topic.POLICIES, Topic.REVIEWS, Topic.PREVIEW_REQUESTS),
        ),
        writes=(
            *(Topic.SNAPSHOT_COMMANDS, Topic.FINE_TUNE_REQUESTS, Topic.SNAPSHOT_PARTS, Topic.TRAINING_PROGRESS),
            *(Topic.FINE_TUNE_STATUS, Topic.TRAINING_JOBS, Topic.DEAD_LETTERS, Topic.ERASURE_CONFIRMATIONS),
            *(Topic.FOLDER_STATS, Topic.POLICIES, Topic.POLICY_DECISIONS, Topic.PREVIEWS),
        ),
        manages=tuple(Topic),
    ),
    # ``foldtune launcher``, and the functions launch and batch-state.
    Part.LAUNCHER: Rights(
        reads=(Topic.FINE_TUNE_STATUS, Topic.TRAINING_JOBS),
        writes=(Topic.TRAINING_REPORTS, Topic.DEAD_LETTERS),
        checks=(Topic.TRAINING_REPORTS, Topic.FINE_TUNE_STATUS, Topic.TRAINING_JOBS, Topic.DEAD_LETTERS),
    ),
    Part.TRAINER: Rights(writes=(Topic.MODEL_READY, Topic.TRAINING_REPORTS)),
    # ``foldtune deploy``, ``subscribe`` and ``models``.
    Part.DEPLOYER: Rights(reads=(Topic.MODEL_READY, Topic.REVIEWS)),
    # ``foldtune notify``.
    Part.NOTIFIER: Rights(
        reads=(Topic.FINE_TUNE_STATUS, Topic.POLICY_DECISIONS),
        checks=(Topic.FINE_TUNE_STATUS, Topic.POLICY_DECISIONS),
    ),
    # The HTTP API, and the functions api and schedule.
    Part.API: Rights(
        # The data topics for what an erasure would affect, and all inputs for what is replayed.
        reads=(
            *(*_INPUTS, Topic.ERASURE_CONFIRMATIONS, Topic.FINE_TUNE_REQUESTS, Topic.FINE_TUNE_STATUS),
            *(Topic.MODEL_READY, Topic.DEAD_LETTERS, Topic.AUDIT, Topic.FOLDER_STATS),
            *(Topic.POLICIES, Topic.POLICY_DECISIONS, Topic.REVIEWS, Topic.PREVIEWS),
        ),
        writes=(
            *(*DATA_TOPICS, Topic.FINE_TUNE_REQUESTS, Topic.DEAD_LETTERS, Topic.AUDIT),
            *(Topic.POLICIES, Topic.REVIEWS, Topic.PREVIEW_REQUESTS),
        ),
    ),
    # All other commands.
    Part.OPERATOR: Rights(
        reads=(
            *(*_INPUTS, Topic.ERASURE_CONFIRMATIONS, Topic.FINE_TUNE_STATUS),
            *(Topic.MODEL_READY, Topic.TRAINING_JOBS, Topic.DEAD_LETTERS),
            *(Topic.POLICIES, Topic.POLICY_DECISIONS, Topic.REVIEWS),
        ),
        writes=(*DATA_TOPICS, Topic.FINE_TUNE_REQUESTS, Topic.DEAD_LETTERS, Topic.POLICIES, Topic.REVIEWS),
        manages=tuple(Topic),
    ),
}

_CHECK = ("DESCRIBE", "DESCRIBE_CONFIGS")
_MANAGE = (*_CHECK, "CREATE", "ALTER_CONFIGS")


@dataclass(frozen=True)
class Acl:
    """Operations that are allowed on resources of one kind, by their names or by the beginning of these."""

    operations: tuple[str, ...]
    resource: str
    names: tuple[str, ...]
    prefixed: bool = False


def acls(part: Part, settings: Settings) -> Iterator[Acl]:
    """The ACLs of a part with these settings: ``kafka.topic_prefix``, and of a worker ``worker.app_id``."""
    rights, prefix = RIGHTS[part], settings.kafka.topic_prefix
    by_operations = {("READ",): rights.reads, ("WRITE",): rights.writes, _CHECK: rights.checks, _MANAGE: rights.manages}
    for operations, topics in by_operations.items():
        if topics:
            yield Acl(operations, "topic", tuple(topic.named(prefix) for topic in topics))
    match part:
        case Part.WORKER:
            yield Acl(("READ", "WRITE", *_MANAGE), "topic", changelogs(settings.worker.app_id))
            yield Acl(("READ",), "group", (settings.worker.app_id,))
        case Part.LAUNCHER:
            yield Acl(("READ",), "group", (f"{prefix}foldtune-",), prefixed=True)
        case Part.NOTIFIER:
            yield Acl(("READ",), "group", (f"{prefix}foldtune-notifier",))
        case Part.OPERATOR:
            # Of records: ``foldtune erase --artifacts --delete``.
            yield Acl(("DELETE",), "topic", (Topic.DEAD_LETTERS.named(prefix),))
        case Part.DEPLOYER:
            yield Acl(("READ",), "group", (f"{prefix}deployer",), prefixed=True)


def command_line(principal: str, acl: Acl, bootstrap_servers: str) -> str:
    """The command line of Kafka's own tool that adds an ACL."""
    words = ["kafka-acls.sh", "--bootstrap-server", bootstrap_servers, "--add", "--allow-principal", principal]
    words += [word for operation in acl.operations for word in ("--operation", operation.title().replace("_", ""))]
    words += [word for name in acl.names for word in (f"--{acl.resource}", name)]
    return shlex.join(words + (["--resource-pattern-type", "prefixed"] if acl.prefixed else []))
