"""What is wrong with a topic's durability and layout; what brokers really do is in the integration tests."""

from typing import Any
from uuid import UUID

import pytest
from kafka.errors import TopicAlreadyExistsError

from foldtune import topic_admin
from foldtune.errors import PartitionCountError, TopicConfigError
from foldtune.settings import KafkaSettings
from foldtune.topic_admin import Misconfigured, create_topics, inspect_topics
from foldtune.topics import Topic

LOGS = (Topic.CHAT_LOGS,)


def value(of: object, *, own: bool = False) -> dict[str, object]:
    return {"value": str(of), "config_source": "DYNAMIC_TOPIC_CONFIG" if own else "DEFAULT_CONFIG"}


MINE = {key: value(of, own=True) for key, of in Topic.CHAT_LOGS.config.items()}
DEFAULTS = MINE | {"min.insync.replicas": value(1), "unclean.leader.election.enable": value("false")}


class Brokers:
    """As much of an admin client as is asked, with topics of three replicas."""

    def __init__(self, found: dict[str, dict[str, Any]], replicas: int = 3, partitions: int = 4) -> None:
        self.empty = False
        self.found, self.altered = found, dict[str, dict[str, str]]()
        self.partitions = [{"replica_nodes": list(range(replicas))}] * partitions

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {"name": name, "topic_id": UUID(int=7), "partitions": self.partitions if name in self.found else []}
            for name in names
        ]

    def describe_configs(self, resources: list[Any], **_: object) -> dict[str, Any]:
        return {"topic": {one.name: DEFAULTS | self.found[one.name] for one in resources}}

    def list_topics(self) -> list[str]:
        return []

    def create_topics(self, *_: object, **__: object) -> None:
        if not self.empty:
            raise TopicAlreadyExistsError

    def alter_configs(self, resources: list[Any], **_: object) -> dict[str, Any]:
        self.altered |= {one.name: one.configs for one in resources}
        return {"topic": {one.name: "OK" for one in resources}}

    def close(self) -> None: ...


def brokers(monkeypatch: pytest.MonkeyPatch, found: dict[str, dict[str, Any]] | None = None, **layout: int) -> Brokers:
    fake = Brokers({"chat-logs": found or {}}, **layout)
    monkeypatch.setattr(topic_admin, "connect", lambda *_: fake)
    return fake


@pytest.mark.parametrize(
    ("replicas", "found", "altered"),
    [
        (3, {}, {"min.insync.replicas": "2"}),
        (3, {"min.insync.replicas": value(2)}, {}),
        (3, {"min.insync.replicas": value(1, own=True)}, {}),
        (2, {}, {}),
        (2, {"min.insync.replicas": value(2)}, {}),
        # It takes no records.
        (1, {"min.insync.replicas": value(2)}, {"min.insync.replicas": "1"}),
        (3, {"min.insync.replicas": value(4, own=True)}, {"min.insync.replicas": "2"}),
        (1, {"unclean.leader.election.enable": value("true")}, {"unclean.leader.election.enable": "false"}),
        (1, {"unclean.leader.election.enable": value("true", own=True)}, {}),
        (1, {"cleanup.policy": value("compact", own=True)}, {"cleanup.policy": "delete"}),
        (1, {"retention.ms": value(604_800_000)}, {"retention.ms": "-1"}),
        (1, {"retention.ms": value(604_800_000, own=True)}, {}),
        (1, {"retention.bytes": value(1 << 30)}, {"retention.bytes": "-1"}),
        (1, {"retention.bytes": value(1 << 30, own=True)}, {}),
    ],
)
def test_what_records_are_lost_by_is_altered_refused_and_reported(
    monkeypatch: pytest.MonkeyPatch, replicas: int, found: dict[str, Any], altered: dict[str, str]
) -> None:
    settings = KafkaSettings(replication_factor=replicas)
    fake = brokers(monkeypatch, found, replicas=replicas)
    assert {(wrong.setting, wrong.expected) for wrong in inspect_topics(settings, LOGS).misconfigured} == set(
        altered.items()
    )
    assert not fake.altered
    create_topics(settings.model_copy(update={"topic_config": "ignore"}), LOGS)
    assert not fake.altered
    create_topics(settings, LOGS)
    assert fake.altered == ({"chat-logs": altered} if altered else {})
    refusing = settings.model_copy(update={"topic_config": "refuse"})
    if altered:
        with pytest.raises(TopicConfigError, match="chat-logs"):
            create_topics(refusing, LOGS)
    else:
        create_topics(refusing, LOGS)


def test_the_layout_of_topics_is_reported_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = KafkaSettings(replication_factor=3, partitions=4)
    fake = brokers(monkeypatch, {}, replicas=2, partitions=8)
    found = inspect_topics(settings, (*LOGS, Topic.FEEDBACK))
    assert found.ids == {"chat-logs": str(UUID(int=7)), "feedback": str(UUID(int=7))}
    assert set(found.misconfigured) == {
        Misconfigured("chat-logs", "partitions", "8", "4"),
        Misconfigured("chat-logs", "replicas", "2", "3"),
        # It does not exist.
        Misconfigured("feedback", "partitions", "0", "4"),
    }
    with pytest.raises(PartitionCountError, match="chat-logs, 8, 4"):
        create_topics(settings, LOGS)
    fake.partitions = fake.partitions[:4]
    create_topics(settings, LOGS)
    with pytest.raises(TopicConfigError, match="chat-logs, replicas, 2, 3"):
        create_topics(settings.model_copy(update={"topic_config": "refuse"}), LOGS)
    assert inspect_topics(settings.model_copy(update={"topic_config": "ignore"}), LOGS).misconfigured == [
        Misconfigured("chat-logs", "replicas", "2", "3")
    ]


def test_a_configuration_that_brokers_do_not_tell_is_not_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = brokers(monkeypatch)
    monkeypatch.setattr(fake, "describe_configs", lambda *_, **__: {})
    assert inspect_topics(KafkaSettings(), LOGS).misconfigured == []
    create_topics(KafkaSettings(), LOGS)
    assert not fake.altered
    with pytest.raises(TopicConfigError, match="unknown"):
        create_topics(KafkaSettings(topic_config="refuse"), LOGS)


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("topic_config", ["alter", "refuse"])
def test_a_topic_that_was_created_is_altered_where_the_brokers_defaults_lose_records(
    monkeypatch: pytest.MonkeyPatch, replicas: int, topic_config: Any
) -> None:
    fake = brokers(monkeypatch, replicas=replicas)
    fake.empty = True
    create_topics(KafkaSettings(replication_factor=replicas, topic_config=topic_config), LOGS)
    assert fake.altered == ({"chat-logs": {"min.insync.replicas": "2"}} if replicas == 3 else {})
