"""Topics have our configuration, whoever made them; only topics that are stamped otherwise need another rule."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from typer.testing import CliRunner

from foldtune.bounds import Bounds
from foldtune.cli import app
from foldtune.errors import PublishError, TopicConfigError, TopicMissingError
from foldtune.events import DocumentUpserted, now
from foldtune.kafka import Publisher, client_options
from foldtune.settings import Sets, Settings
from foldtune.topic_admin import create_topics
from foldtune.topic_reader import read
from foldtune.topics import CHANGELOG_CONFIG, Topic
from streams.partitions.consumer import PartitionConsumer
from streams.partitions.positions import position_changes, stored_position
from streams.training_sets.ingest import Ingest
from streams.training_sets.store import TrainingSets
from tests.integration.test_partition_consumer import Owned
from tests.support import settings_of

CHANGELOG = "a-changelog"
DOCUMENT = DocumentUpserted(document_id="d", folder_id="f", occurred_at=now(), text="words")


@pytest.fixture
def fresh(variables: dict[str, str]) -> Settings:
    """A system without topics."""
    return settings_of(variables)


@pytest.fixture
def admin(fresh: Settings) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(**client_options(fresh.kafka))
    yield client
    client.close()


def config(admin: KafkaAdminClient, name: str) -> dict[str, str]:
    """Every value of a topic's configuration, those of the brokers included."""
    resource = ConfigResource(ConfigResourceType.TOPIC, name)
    found = admin.describe_configs([resource], config_filter="all")["topic"][name]
    return {key: value["value"] for key, value in found.items()}


def assert_configured(admin: KafkaAdminClient, name: str, expected: dict[str, str]) -> None:
    """A broker hears of an alteration a moment after it was acknowledged."""
    deadline = time.monotonic() + 10
    while not config(admin, name).items() >= expected.items() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert config(admin, name).items() >= expected.items()


def create_as_brokers_do(admin: KafkaAdminClient, settings: Settings, name: str, **own: str) -> None:
    topic_configs = {key.replace("_", "."): value for key, value in own.items()}
    admin.create_topics([NewTopic(name, settings.kafka.partitions, 1, topic_configs=topic_configs)])


def test_topics_that_the_brokers_made_get_our_configuration(fresh: Settings, admin: KafkaAdminClient) -> None:
    topics = (Topic.CHAT_LOGS, Topic.FINE_TUNE_STATUS, Topic.DEAD_LETTERS)
    prefix, changelog = fresh.kafka.topic_prefix, f"{fresh.kafka.topic_prefix}{CHANGELOG}"
    for name in (*(topic.named(prefix) for topic in topics), changelog):
        create_as_brokers_do(admin, fresh, name)
    refusing = fresh.kafka.model_copy(update={"topic_config": "refuse"})
    with pytest.raises(TopicConfigError, match=r"chat-logs, message.timestamp.type, CreateTime, LogAppendTime"):
        create_topics(refusing, topics, (changelog,))
    create_topics(fresh.kafka.model_copy(update={"topic_config": "ignore"}), topics, (changelog,))
    assert config(admin, Topic.CHAT_LOGS.named(prefix))["retention.ms"] == str(7 * 24 * 3600 * 1000)
    create_topics(fresh.kafka, topics, (changelog,))
    for topic in topics:
        assert_configured(admin, topic.named(prefix), topic.config)
    assert_configured(admin, changelog, CHANGELOG_CONFIG)
    create_topics(refusing, topics, (changelog,))


def test_what_an_operator_has_set_stays_unless_data_is_lost_by_it(fresh: Settings, admin: KafkaAdminClient) -> None:
    logs, letters = (topic.named(fresh.kafka.topic_prefix) for topic in (Topic.CHAT_LOGS, Topic.DEAD_LETTERS))
    own = {"retention.ms": "86400000", "message.timestamp.type": "CreateTime", "max.message.bytes": "3000000"}
    create_as_brokers_do(admin, fresh, logs, **own)
    create_as_brokers_do(admin, fresh, letters, **{"cleanup.policy": "compact", "max.message.bytes": "1000"})
    create_topics(fresh.kafka, (Topic.CHAT_LOGS, Topic.DEAD_LETTERS))
    assert_configured(admin, letters, Topic.DEAD_LETTERS.config)
    assert_configured(admin, logs, own)


def test_import_creates_its_topic_as_the_worker_does(
    fresh: Settings, admin: KafkaAdminClient, runner: CliRunner, tmp_path: Path
) -> None:
    (tmp_path / "documents.jsonl").write_bytes(DOCUMENT.encode())
    result = runner.invoke(app, ["import", "documents", str(tmp_path / "documents.jsonl")])
    assert result.exit_code == 0, result.output
    assert_configured(admin, Topic.DOCUMENTS.named(fresh.kafka.topic_prefix), Topic.DOCUMENTS.config)


def test_no_client_makes_the_brokers_create_a_topic(fresh: Settings, admin: KafkaAdminClient) -> None:
    with Publisher(fresh.kafka) as publisher:
        publisher._producer.config["max_block_ms"] = 1_000
        with pytest.raises(PublishError):
            publisher.publish(Topic.DOCUMENTS, DOCUMENT, key="f")
    with pytest.raises(TopicMissingError):
        list(read(fresh.kafka, Topic.FINE_TUNE_STATUS))
    assert not [name for name in admin.list_topics() if name.startswith(fresh.kafka.topic_prefix)]


def test_state_is_the_same_in_whatever_blocks_producers_times_are_read(
    fresh: Settings, admin: KafkaAdminClient
) -> None:
    logs = Topic.CHAT_LOGS.named(fresh.kafka.topic_prefix)
    create_as_brokers_do(admin, fresh, logs, **{"message.timestamp.type": "CreateTime"})
    at = now()
    millis = int(at.timestamp() * 1000)
    times = (-1, millis, millis // 1000, -1, millis - 60_000, 0)
    occurred = (at, at, at, at.replace(year=2099), at, at)

    async def publish() -> None:
        async with AIOKafkaProducer(bootstrap_servers=fresh.kafka.bootstrap_servers) as producer:
            for number, (time, moment) in enumerate(zip(times, occurred, strict=True)):
                value = (
                    f'{{"type":"chat_log","log_id":"{number}","agent_id":"a","question":"how?","folder_id":"f",'
                    f'"occurred_at":"{moment.isoformat()}"}}'
                )
                await producer.send_and_wait(logs, value.encode(), partition=0, timestamp_ms=time)

    async def state_of(block_records: int) -> tuple[list[int], list[int], dict[str, int]]:
        table, letters = Owned(), list[int]()

        async def reject(*letter: Any) -> None:
            letters.append(letter[3][2])

        sets = TrainingSets(table, Sets())
        ingest = Ingest(sets, mock.Mock(send_to_dead_letters=reject), Bounds(), Sets(), None)

        async def handle(topic: Topic, partition: int, messages: Sequence[Any]) -> None:
            await ingest.handle(topic, partition, messages)

        consumer = PartitionConsumer(
            fresh.kafka,
            (Topic.CHAT_LOGS,),
            cast(Any, table),
            write=table.write,
            handle=handle,
            reject=mock.AsyncMock(side_effect=AssertionError),
            block_records=block_records,
        )
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(consumer.run())
            while stored_position(table, Topic.CHAT_LOGS, 0).offset < len(times):
                await asyncio.sleep(0.05)
            consumer.stop()
        view = sets.view(0)
        position = stored_position(table, Topic.CHAT_LOGS, 0)
        stored = {
            key.decode(): int((table.get(0, key) or b"0").split()[-1])
            for key in position_changes(Topic.CHAT_LOGS, position)
        }
        return [record.offset for record in view.records(view.segments["f"])], letters, stored

    asyncio.run(publish())
    one_by_one, at_once = (asyncio.run(state_of(size)) for size in (1, 5_000))
    assert one_by_one == at_once == ([1, 2, 4, 5], [0, 3], {"n|chat-logs": millis, "o|chat-logs": 6})
