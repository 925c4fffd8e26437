"""What producers may do to a topic that others would not expect."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest import mock

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError

from foldtune.dead_letters import ERROR_HEADER
from foldtune.events import FineTuneStatus, State, now
from foldtune.kafka import Publisher, partition_of
from foldtune.settings import Settings
from foldtune.topics import MAX_RECORD_BYTES, Topic
from streams.partitions.consumer import Handler, PartitionConsumer
from tests.integration.conftest import StartWorker
from tests.integration.test_worker import exported, jobs, publish_request, snapshot, statuses
from tests.memory_table import MemoryTable
from tests.support import Reader, fine_tune_request, folder_history

CODECS = (None, "gzip", "snappy", "lz4", "zstd")


async def publish(settings: Settings, folder: str, codec: str | None, timestamp: int | None) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap_servers, compression_type=codec, max_request_size=2 << 20
    )
    await producer.start()
    try:
        for topic, event in folder_history(folder, 5):
            await producer.send_and_wait(
                topic.named(settings.kafka.topic_prefix),
                event.encode(),
                key=folder.encode(),
                partition=partition_of(folder, settings.kafka.partitions),
                timestamp_ms=timestamp,
            )
    finally:
        await producer.stop()


def test_every_compression_codec_is_read(settings: Settings, publisher: Publisher, start_worker: StartWorker) -> None:
    start_worker()
    for codec in CODECS:
        asyncio.run(publish(settings, f"by {codec}", codec, None))
    publish_request(publisher, fine_tune_request("r"))
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        (job,) = jobs(reader.until(lambda records: bool(jobs(records))))
    rows = exported(settings, snapshot(settings, job), "examples")
    assert {name: len(list(found)) for name, found in itertools.groupby(sorted(row["folder_id"] for row in rows))} == {
        f"by {codec}": 5 for codec in CODECS
    }


def test_an_oversized_dead_letter_is_truncated(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    start_worker()

    async def publish_large() -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka.bootstrap_servers, compression_type="gzip", max_request_size=8 << 20
        )
        await producer.start()
        await producer.send_and_wait(Topic.CHAT_LOGS.named(settings.kafka.topic_prefix), b"x" * 3_000_000, partition=0)
        await producer.stop()

    asyncio.run(publish_large())
    with Reader(settings, Topic.DEAD_LETTERS) as reader:
        (letter,) = reader.until(bool)
    assert letter.value == b"x" * (MAX_RECORD_BYTES - 64 * 1024)
    assert b"truncated from 3000000 bytes" in dict(letter.headers)[ERROR_HEADER]


def test_an_invalid_request_with_a_used_id_does_not_end_the_first(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    start_worker()
    for topic, event in folder_history("alpha", 25):
        publisher.send(topic, event, key="alpha")
    publisher.flush()
    publish_request(publisher, fine_tune_request("r"))
    publish_request(publisher, fine_tune_request("waits"))
    broken = [fine_tune_request(name).model_dump_json().replace('"epochs":3', '"epochs":0') for name in ("r", "waits")]

    def answers(records: list[Any]) -> bool:
        return all(len(statuses(records, name)) > count for name, count in before.items())

    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        reader.until(lambda records: bool(jobs(records)) and bool(statuses(records, "waits")))
        before = {name: len(statuses(reader.records, name)) for name in ("r", "waits")}
        for value in broken:
            publisher.send_raw(Topic.FINE_TUNE_REQUESTS, value.encode(), key="model")
        publisher.flush()
        reader.until(answers)
        done = FineTuneStatus(request_id="r", model="model", state=State.COMPLETED, at=now())
        publisher.publish(Topic.TRAINING_REPORTS, done, key="r", partition_by="model")
        reader.until(lambda records: any(one.state.terminal for one in statuses(records, "r")))
        before = {"r": len(statuses(reader.records, "r"))}
        publisher.send_raw(Topic.FINE_TUNE_REQUESTS, broken[0].encode(), key="model")
        publisher.flush()
        records = reader.until(answers)
    assert {one.state for one in statuses(records, "r") if one.state.terminal} == {State.COMPLETED}
    assert not any(one.state.terminal for one in statuses(records, "waits"))


def test_transaction_markers_do_not_block_an_export(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    start_worker(FOLDTUNE_WORKER__CATCH_UP_TIMEOUT="PT50S")

    async def publish_in_transactions() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, transactional_id="t")
        await producer.start()
        try:
            for folder, committed in (("taken back", False), ("given", True)):
                await producer.begin_transaction()
                for topic, event in folder_history(folder, 25):
                    partition = partition_of(folder, settings.kafka.partitions)
                    await producer.send_and_wait(
                        topic.named(settings.kafka.topic_prefix), event.encode(), folder.encode(), partition
                    )
                await (producer.commit_transaction() if committed else producer.abort_transaction())
        finally:
            await producer.stop()

    asyncio.run(publish_in_transactions())
    publish_request(publisher, fine_tune_request("r"))
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        (job,) = jobs(reader.until(lambda records: bool(jobs(records)), seconds=40))
    assert {row["folder_id"] for row in exported(settings, snapshot(settings, job), "examples")} == {"given"}


class Owned(MemoryTable):
    """A table whose owned partitions a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.owned = {0}

    def owned_generation(self, partition: int) -> int | None:
        return 1 if partition in self.owned else None


def consumer_of(settings: Settings, table: Owned, handle: Handler, *, block_records: int) -> PartitionConsumer:
    """Consumes chat logs into ``table``."""
    return PartitionConsumer(
        settings.kafka,
        (Topic.CHAT_LOGS,),
        cast(Any, table),
        write=table.write,
        handle=handle,
        reject=mock.AsyncMock(),
        block_records=block_records,
    )


def test_partitions_are_consumed_concurrently(settings: Settings) -> None:
    table, started, released = Owned(), asyncio.Event(), asyncio.Event()
    handled: list[tuple[int, bytes]] = []

    async def handle(topic: Topic, partition: int, messages: Sequence[Any]) -> None:
        assert topic is Topic.CHAT_LOGS
        if partition == 0:
            started.set()
            await released.wait()
        handled.extend((partition, message.value) for message in messages)

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.05)

    async def consume() -> None:
        consumer = consumer_of(settings, table, handle, block_records=2)
        producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
        async with producer, asyncio.TaskGroup() as group:
            for partition in (0, 1):
                for number in range(3):
                    topic = Topic.CHAT_LOGS.named(settings.kafka.topic_prefix)
                    await producer.send_and_wait(topic, b"%d" % number, partition=partition)
            group.create_task(consumer.run())
            await started.wait()
            table.owned = {0, 1}
            await until(lambda: len(handled) == 3)
            assert handled == [(1, b"0"), (1, b"1"), (1, b"2")]
            released.set()
            await until(lambda: len(handled) == 6)
            assert [consumer.next_offset(Topic.CHAT_LOGS, partition) for partition in (0, 1)] == [3, 3]
            consumer.stop()

    asyncio.run(consume())
    assert sorted(handled) == [(partition, b"%d" % number) for partition in (0, 1) for number in range(3)]


def test_records_are_handled_again_when_the_brokers_did_not_acknowledge_their_outcome(settings: Settings) -> None:
    table = Owned()
    handled: list[bytes] = []

    async def handle(_: Topic, __: int, messages: Sequence[Any]) -> None:
        handled.extend(message.value for message in messages)
        if len(handled) == 2:
            raise KafkaTimeoutError

    async def consume() -> None:
        consumer = consumer_of(settings, table, handle, block_records=1)
        producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
        async with asyncio.timeout(30), producer, asyncio.TaskGroup() as group:
            for number in range(3):
                topic = Topic.CHAT_LOGS.named(settings.kafka.topic_prefix)
                await producer.send_and_wait(topic, b"%d" % number, partition=0)
            group.create_task(consumer.run())
            while consumer.next_offset(Topic.CHAT_LOGS, 0) < 3:
                await asyncio.sleep(0.05)
            consumer.stop()

    asyncio.run(consume())
    assert handled == [b"0", b"1", b"1", b"2"]
