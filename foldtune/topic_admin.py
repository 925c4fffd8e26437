"""Topics as the settings want them: created, checked, and altered or refused."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ConfigResourceType,
    NewTopic,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import InvalidReplicationFactorError, KafkaError, TopicAlreadyExistsError
from tenacity import retry, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from foldtune.acls import Acl
from foldtune.errors import PartitionCountError, TopicConfigError, TopicMissingError
from foldtune.kafka import connect
from foldtune.settings import KafkaSettings
from foldtune.topics import CHANGELOG_CONFIG, REQUIRED_CONFIG, Topic

# Not structlog: unconfigured, that writes to the program's stdout.
_log = logging.getLogger(__name__)


def create_topics(settings: KafkaSettings, topics: tuple[Topic, ...], changelogs: tuple[str, ...] = ()) -> None:
    """Create missing topics, and check those that exist: their number of partitions, as they are co-partitioned, and
    their configuration, which ``kafka.topic_config`` decides on.

    ``changelogs`` are full names of changelog topics.

    Raises:
        NoBrokerError: no broker answers.
        PartitionCountError: a topic has another number of partitions.
        TopicConfigError: a topic has another configuration, and the settings refuse that.
    """
    configs = {topic.named(settings.topic_prefix): topic.config for topic in topics}
    configs |= dict.fromkeys(changelogs, CHANGELOG_CONFIG)
    with _admin(settings) as admin:
        # Brokers refuse a client without the permission to create a topic also where it exists.
        known = set(admin.list_topics())
        existing = [
            name
            for name, config in configs.items()
            if name in known or not _create_if_missing(admin, settings, name, config)
        ]
        for name, count in _partition_counts(admin, list(configs)).items():
            if count != settings.partitions:
                raise PartitionCountError(name, count, settings.partitions)
        if existing and settings.topic_config != "ignore":
            _check_configs(admin, settings, {name: configs[name] for name in existing})


def topic_ids(settings: KafkaSettings, names: Sequence[str]) -> dict[str, str]:
    """The brokers' ids of topics, by name: a topic that is deleted and made anew gets another one.

    Brokers before Kafka 2.8 have none.
    """
    with _admin(settings) as admin:
        ids = {topic["name"]: topic.get("topic_id") for topic in admin.describe_topics(list(names))}
    return {name: str(found) for name, found in ids.items() if found and UUID(str(found)).int}


def create_if_missing(settings: KafkaSettings, topic: Topic) -> None:
    """Create a topic that does not exist, as the worker would: brokers that create topics by themselves do not know
    its configuration.

    Raises:
        NoBrokerError: no broker answers.
        TopicMissingError: it does not exist, and the brokers do not let this client create it.
    """
    name = topic.named(settings.topic_prefix)
    with _admin(settings) as admin:
        if name in admin.list_topics():
            return
        try:
            _create_if_missing(admin, settings, name, topic.config)
            _partition_counts(admin, [name])
        except KafkaError as error:
            raise TopicMissingError(name) from error


def create_acls(settings: KafkaSettings, principal: str, acls: Sequence[Acl]) -> None:
    """Allow a principal what the ACLs say, beside what it may do already.

    Raises:
        NoBrokerError: no broker answers.
        KafkaError: the brokers refuse one; without an authorizer, all.
    """
    with _admin(settings) as admin:
        created = admin.create_acls([entry for acl in acls for entry in _entries(principal, acl)])
    for error in created["failed"]:
        raise error


def _entries(principal: str, acl: Acl) -> Iterator[ACL]:
    kind, pattern = ResourceType[acl.resource.upper()], ACLResourcePatternType.PREFIXED
    for name in acl.names:
        resource = ResourcePattern(kind, name, pattern if acl.prefixed else ACLResourcePatternType.LITERAL)
        for operation in acl.operations:
            yield ACL(principal, "*", ACLOperation[operation], ACLPermissionType.ALLOW, resource)


def delete_records(settings: KafkaSettings, topic: Topic, offsets: Mapping[int, int]) -> None:
    """Delete the records of a topic before an offset, by partition.

    Raises:
        KafkaError: the brokers do not let this client do so.
    """
    name = topic.named(settings.topic_prefix)
    with _admin(settings) as admin:
        admin.delete_records({TopicPartition(name, partition): offset for partition, offset in offsets.items()})


@contextmanager
def _admin(settings: KafkaSettings) -> Iterator[KafkaAdminClient]:
    admin = connect(KafkaAdminClient, settings)
    try:
        yield admin
    finally:
        admin.close()


# A broker that has not heard of a new topic yet reports no partitions.
@retry(retry=retry_if_result(lambda counts: 0 in counts.values()), wait=wait_fixed(0.2), stop=stop_after_delay(15))
def _partition_counts(admin: KafkaAdminClient, names: list[str]) -> dict[str, int]:
    return {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(names)}


# A broker that has only just started, or that stood still, is fenced by its controller for a moment; the error is that
# of a replication factor above the number of brokers.
@retry(
    retry=retry_if_exception_type(InvalidReplicationFactorError),
    wait=wait_fixed(0.5),
    stop=stop_after_delay(15),
    reraise=True,
)
def _create_if_missing(admin: KafkaAdminClient, settings: KafkaSettings, name: str, config: dict[str, str]) -> bool:
    """Whether the topic was created."""
    new = NewTopic(
        name=name,
        num_partitions=settings.partitions,
        replication_factor=settings.replication_factor,
        topic_configs=config,
    )
    try:
        admin.create_topics([new], timeout_ms=15_000)
    except TopicAlreadyExistsError:
        return False
    return True


def _check_configs(admin: KafkaAdminClient, settings: KafkaSettings, configs: dict[str, dict[str, str]]) -> None:
    """Alter or refuse what differs; what cannot be checked or altered is refused or logged."""
    refused = settings.topic_config == "refuse"
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(keys)) for name, keys in configs.items()]
    try:
        described = admin.describe_configs(resources, config_filter="all").get("topic", {})
    except KafkaError as error:
        described = {}
        _log.warning("topic configuration not described", extra={"error": str(error)})
    for name, expected in configs.items():
        # Without the permission to describe it, a topic has no configuration.
        found = described.get(name) or {}
        differing = [key for key, value in expected.items() if _is_wrong(key, value, found.get(key))]
        for key in differing:
            change = (name, key, found.get(key, {}).get("value", "unknown"), expected[key])
            if refused:
                raise TopicConfigError(*change)
        if not found:
            _log.warning("topic configuration not checked", extra={"topic": name})
        elif differing:
            _alter(
                admin, name, {key: expected[key] for key in differing}, {key: found[key]["value"] for key in differing}
            )


def _is_wrong(key: str, expected: str, found: dict[str, Any] | None) -> bool:
    if found is None:
        return True
    if key == "max.message.bytes":
        return int(found["value"]) < int(expected)
    own = found["config_source"] == "DYNAMIC_TOPIC_CONFIG"
    return bool(found["value"] != expected) and (key in REQUIRED_CONFIG or not own)


def _alter(admin: KafkaAdminClient, name: str, config: dict[str, str], before: dict[str, str]) -> None:
    details = {"topic": name, "before": before, "after": config}
    try:
        altered = admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, config)], raise_on_unknown=False)
        result = altered["topic"][name]
    except KafkaError as error:
        result = str(error)
    if result == "OK":
        _log.warning("topic configuration altered", extra=details)
    else:
        _log.warning("topic configuration differs and cannot be altered", extra=details | {"error": result})
