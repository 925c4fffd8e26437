"""A worker applies foreign writes to its store, so that the store stays equal to its changelog."""

import asyncio
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from rocksdict import AccessType, Options, Rdict

from foldtune.kafka import Publisher, partition_of
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.worker.app import changelogs
from tests.integration.conftest import StartWorker
from tests.integration.test_worker import exported, jobs, publish_request, snapshot
from tests.support import Reader, fine_tune_request, folder_history

FOREIGN = {b"x|late": b"written by a zombie", b"x|later": b"and again"}


def store_content(folder: Path) -> dict[bytes, bytes]:
    content: dict[bytes, bytes] = {}
    for path in folder.rglob("CURRENT"):
        database = Rdict(str(path.parent), Options(raw_mode=True), access_type=AccessType.read_only())
        items: Any = database.items()
        content |= dict(items)
        database.close()
    return content


def test_foreign_writes_are_applied_with_the_next_own_write(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker()

    def exported_of(name: str, events: int) -> int:
        for topic, event in folder_history("alpha", events):
            publisher.send(topic, event, key="alpha")
        publisher.flush()
        # One model for each request: requests of one model wait for each other.
        publish_request(publisher, fine_tune_request(name, model=name))
        with Reader(settings, Topic.TRAINING_JOBS) as reader:
            found = reader.until(lambda records: name in {job.request.model for job in jobs(records)})
        job = next(job for job in jobs(found) if job.request.model == name)
        return len(exported(settings, snapshot(settings, job), "examples"))

    async def write_foreign() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
        partition = partition_of("alpha", settings.kafka.partitions)
        async with producer:
            for key, value in FOREIGN.items():
                await producer.send_and_wait(changelogs(settings)[0], value, key, partition=partition)

    assert exported_of("before", 25) == 25
    asyncio.run(write_foreign())
    assert exported_of("after", 30) == 30
    worker.stop()
    assert FOREIGN.items() <= store_content(tmp_path / "one").items()
