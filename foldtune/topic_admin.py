"""Topics as the settings want them: created, checked, and altered or refused."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
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
from kafka.errors import (
    InvalidReplicationFactorError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)
from tenacity import retry, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from foldtune.acls import Acl
from foldtune.errors import PartitionCountError, TopicConfigError, TopicMissingError
from foldtune.kafka import connect
from foldtune.settings import KafkaSettings
from foldtune.topics import CHANGELOG_CONFIG, REQUIRED_CONFIG, Topic

# Not structlog: unconfigured, that writes to the program's stdout.
_log = logging.getLogger(__name__)
# In place of a value that the brokers do not tell.
_UNKNOWN = "unknown"
_MIN_REPLICAS, _UNCLEAN = "min.insync.replicas", "unclean.leader.election.enable"


class Misconfigured(NamedTuple):
    """A setting of a topic that is not as it should be: one of its configuration, ``partitions`` or ``replicas``."""

    topic: str
    setting: str
    found: str
    expected: str


class TopicsFound(NamedTuple):
    """Topics as the brokers have them."""

    # By name: a topic that is deleted and made anew gets another one. Brokers before Kafka 2.8 have none.
    ids: dict[str, str]
    misconfigured: list[Misconfigured]


def inspect_topics(settings: KafkaSettings, topics: tuple[Topic, ...], changelogs: tuple[str, ...] = ()) -> TopicsFound:
    """Look at topics, and alter nothing.

    Raises:
        NoBrokerError: no broker answers.
        KafkaError: it ceases to.
    """
    configs = _configs(settings, topics, changelogs)
    with _admin(settings) as admin:
        described = _describe(admin, list(configs))
        misconfigured = [
            finding for name, topic in described.items() for finding in _layout_findings(settings, name, topic)
        ]
        if settings.topic_config != "ignore":
            existing = {name: configs[name] for name, topic in described.items() if topic["partitions"]}
            found = _config_findings(admin, existing, described)
            misconfigured += [finding for finding in found if finding.found != _UNKNOWN]
    return TopicsFound(_ids(described), misconfigured)


def create_topics(settings: KafkaSettings, topics: tuple[Topic, ...], changelogs: tuple[str, ...] = ()) -> None:
    """Create missing topics, and check those that exist: their number of partitions, as they are co-partitioned, and
    their configuration, which ``kafka.topic_config`` decides on.

    ``changelogs`` are full names of changelog topics.

    Raises:
        NoBrokerError: no broker answers.
        TopicMissingError: this client may not create it.
        PartitionCountError: a topic has another number of partitions.
        TopicConfigError: a topic has another configuration, and the settings refuse that.
    """
    configs = _configs(settings, topics, changelogs)
    with _admin(settings) as admin:
        # Brokers refuse a client without the permission to create a topic also where it exists.
        known = set(admin.list_topics())
        existing = {
            name: config
            for name, config in configs.items()
            if name in known or not _create_if_missing(admin, settings, name, config)
        }
        described = _describe_created(admin, list(configs))
        for name, topic in described.items():
            if (count := len(topic["partitions"])) != settings.partitions:
                raise PartitionCountError(name, count, settings.partitions)
        if settings.topic_config == "ignore":
            return
        if existing:
            _settle(admin, settings, existing, described, refused=settings.topic_config == "refuse")
        created = {name: config for name, config in configs.items() if name not in existing}
        if created and settings.replication_factor > 2:
            # Their brokers' defaults may lose records; some brokers refuse to create a topic with others.
            _settle(admin, settings, created, described, refused=False)


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
            _describe_created(admin, [name])
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


def _configs(
    settings: KafkaSettings, topics: tuple[Topic, ...], changelogs: tuple[str, ...]
) -> dict[str, dict[str, str]]:
    """The configuration that topics should have, by name."""
    configs = {topic.named(settings.topic_prefix): topic.config for topic in topics}
    return configs | dict.fromkeys(changelogs, CHANGELOG_CONFIG)


def _describe(admin: KafkaAdminClient, names: list[str]) -> dict[str, Any]:
    return {topic["name"]: topic for topic in admin.describe_topics(names)}


# A broker that has not heard of a new topic yet reports no partitions.
_describe_created = retry(
    retry=retry_if_result(lambda described: not all(topic["partitions"] for topic in described.values())),
    wait=wait_fixed(0.2),
    stop=stop_after_delay(15),
)(_describe)


def _ids(described: Mapping[str, Any]) -> dict[str, str]:
    ids = {name: str(topic.get("topic_id") or "") for name, topic in described.items()}
    return {name: found for name, found in ids.items() if found and UUID(found).int}


def _replicas(topic: Mapping[str, Any]) -> int:
    return min((len(partition["replica_nodes"]) for partition in topic["partitions"]), default=0)


def _layout_findings(settings: KafkaSettings, name: str, topic: Mapping[str, Any]) -> Iterator[Misconfigured]:
    """What no alteration of a topic's configuration would change; a topic that is missing has no partitions."""
    if (partitions := len(topic["partitions"])) != settings.partitions:
        yield Misconfigured(name, "partitions", str(partitions), str(settings.partitions))
    if topic["partitions"] and _replicas(topic) < settings.replication_factor:
        yield Misconfigured(name, "replicas", str(_replicas(topic)), str(settings.replication_factor))


# A broker that has only just started, or that stood still, is fenced by its controller for a moment; the error is that
# of a replication factor above the number of brokers.
@retry(
    retry=retry_if_exception_type(InvalidReplicationFactorError),
    wait=wait_fixed(0.5),
    stop=stop_after_delay(15),
    reraise=True,
)
def _create_if_missing(admin: KafkaAdminClient, settings: KafkaSettings, name: str, config: dict[str, str]) -> bool:
    """Whether the topic was created; raises ``TopicMissingError`` where the client may not."""
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
    except TopicAuthorizationFailedError as error:
        raise TopicMissingError(name) from error
    return True


def _settle(
    admin: KafkaAdminClient,
    settings: KafkaSettings,
    configs: dict[str, dict[str, str]],
    described: Mapping[str, Any],
    *,
    refused: bool,
) -> None:
    """Alter or refuse what differs; what cannot be checked or altered is refused or logged."""
    findings = _config_findings(admin, configs, described)
    layout = [finding for name in configs for finding in _layout_findings(settings, name, described[name])]
    if refused:
        for finding in (*findings, *layout):
            raise TopicConfigError(*finding)
    for finding in layout:
        _log.warning("topic differs and cannot be altered", extra=finding._asdict())
    for name in configs:
        differing = [finding for finding in findings if finding.topic == name]
        if any(finding.found == _UNKNOWN for finding in differing):
            _log.warning("topic configuration not checked", extra={"topic": name})
        elif differing:
            _alter(
                admin,
                name,
                {finding.setting: finding.expected for finding in differing},
                {finding.setting: finding.found for finding in differing},
            )


def _config_findings(
    admin: KafkaAdminClient, configs: dict[str, dict[str, str]], described: Mapping[str, Any]
) -> list[Misconfigured]:
    """What differs in the configuration of topics that exist, except for what is an operator's choice."""
    expected = {name: config | _durability(_replicas(described[name])) for name, config in configs.items()}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(keys)) for name, keys in expected.items()]
    try:
        found = admin.describe_configs(resources, config_filter="all").get("topic", {})
    except KafkaError as error:
        found = {}
        # While running, again and again.
        _log.debug("topic configuration not described", extra={"error": str(error)})
    return [
        # Without the permission to describe it, a topic has no configuration.
        Misconfigured(name, key, ((found.get(name) or {}).get(key) or {}).get("value", _UNKNOWN), value)
        for name, config in expected.items()
        for key, value in config.items()
        if _is_wrong(key, value, (found.get(name) or {}).get(key), _replicas(described[name]))
    ]


def _durability(replicas: int) -> dict[str, str]:
    """Without which brokers lose what they have acknowledged. Of three replicas, one may be gone."""
    return {_MIN_REPLICAS: "2" if replicas > 2 else "1", _UNCLEAN: "false"}


def _is_wrong(key: str, expected: str, found: dict[str, Any] | None, replicas: int) -> bool:
    if found is None:
        return True
    own = found["config_source"] == "DYNAMIC_TOPIC_CONFIG"
    if key == "max.message.bytes":
        return int(found["value"]) < int(expected)
    if key == _MIN_REPLICAS:
        # With more than there are, the topic takes no records.
        return int(found["value"]) > replicas or (not own and int(found["value"]) < int(expected))
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
