"""Topics and brokers may compress; both client libraries read all codecs, and bound what they decompress."""

import asyncio
from contextlib import closing
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

import streams.worker.app  # noqa: F401  the worker's client is bounded with it
from foldtune.compression import MAX_BYTES
from foldtune.kafka import Publisher, client_options
from foldtune.settings import KafkaSettings
from foldtune.topic_reader import read
from foldtune.topics import Topic
from tests.support import settings_of


async def read_as_the_worker(kafka: KafkaSettings, count: int) -> list[Any]:
    """The first records of the documents, by aiokafka."""
    partition = TopicPartition(Topic.DOCUMENTS.named(kafka.topic_prefix), 0)
    consumer = AIOKafkaConsumer(**client_options(kafka), auto_offset_reset="earliest")
    records: list[Any] = []
    async with asyncio.timeout(30), consumer:
        consumer.assign([partition])
        while len(records) < count:
            records += (await consumer.getmany(partition, timeout_ms=200)).get(partition, [])
    return records


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_compressed_topic_is_read_and_a_bomb_in_it_is_one_empty_record(codec: str, variables: dict[str, str]) -> None:
    kafka = settings_of(variables).kafka
    name = Topic.DOCUMENTS.named(kafka.topic_prefix)
    with closing(KafkaAdminClient(**client_options(kafka))) as admin:
        admin.create_topics([NewTopic(name, 1, 1, topic_configs={"compression.type": codec})])
    with Publisher(kafka) as publisher:
        publisher.send_raw(Topic.DOCUMENTS, b"before" * 1000, key="k")
    # Snappy and lz4 cannot shrink so much to a record that brokers take.
    if codec in {"gzip", "zstd"}:
        size = 2 * MAX_BYTES
        with closing(KafkaProducer(**client_options(kafka), compression_type=codec, max_request_size=2 * size)) as bomb:
            bomb.send(name, bytes(MAX_BYTES + 1), key=b"k").get(30)
    with Publisher(kafka) as publisher:
        publisher.send_raw(Topic.DOCUMENTS, b"after", key="k")
    expected = [b"before" * 1000, *([None] if codec in {"gzip", "zstd"} else []), b"after"]
    assert [record.value for record in read(kafka, Topic.DOCUMENTS)] == expected
    assert [record.value for record in asyncio.run(read_as_the_worker(kafka, len(expected)))] == expected
