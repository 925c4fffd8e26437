"""Events that once ended every worker, through a real broker and a real worker."""

import asyncio
from typing import Any

from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from foldtune.dead_letters import ERROR_HEADER
from foldtune.events import FineTuneStatus, SnapshotPart, State, now
from foldtune.kafka import Publisher, client_options
from foldtune.knobs import DataSelection
from foldtune.settings import Settings
from foldtune.topics import Topic
from tests.integration.conftest import StartWorker
from tests.integration.test_worker import ended, statuses
from tests.support import Reader, fine_tune_request


def send_compressed(settings: Settings, topic: Topic, key: bytes | None, value: bytes) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=settings.kafka.bootstrap_servers, compression_type="gzip", max_request_size=8 << 20
        ) as producer:
            await producer.send_and_wait(topic.named(settings.kafka.topic_prefix), value, key=key, partition=0)

    asyncio.run(send())


def test_no_event_ends_the_worker_and_each_has_one_end(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    worker = start_worker()
    publisher.send_raw(Topic.CHAT_LOGS, b"{first", key="k", partition=0)
    publisher.flush()
    with Reader(settings, Topic.DEAD_LETTERS) as reader:
        reader.until(bool)
    # The worker has checked the topics' configuration, and an operator alters one: a record may exceed it decompressed.
    topic = ConfigResource(
        ConfigResourceType.TOPIC,
        Topic.DEAD_LETTERS.named(settings.kafka.topic_prefix),
        configs={"max.message.bytes": str(1024 * 1024)},
    )
    admin = KafkaAdminClient(**client_options(settings.kafka))
    admin.alter_configs([topic])
    admin.close()

    def request(name: str, value: bytes) -> None:
        publisher.send_raw(Topic.FINE_TUNE_REQUESTS, value, key=name)

    names = {kind: tuple(f"{kind}{number:05}" for number in range(10_000)) for kind in "fa"}
    data = DataSelection(folders=names["f"], agents=names["a"])
    request("unknown", fine_tune_request("unknown", model="unknown", data=data).encode())
    long_fields = b",".join(b'"%s":1' % (b"%02d" % number * 25_000) for number in range(19))
    request("large", fine_tune_request("large", model="large").encode()[:-1] + b',"data":{%s}}' % long_fields)
    for number in range(150):
        request("same", fine_tune_request(f"same-{number}", model="same").encode())
    publisher.flush()
    send_compressed(settings, Topic.CHAT_LOGS, b"k" * 100_000, b"v" * 2_100_000)
    send_compressed(settings, Topic.FEEDBACK, b"k", b"v" * 1_500_000)
    # Through the bounds of the schema, into the arithmetic behind it.
    far = b'{"subject":"user","subject_id":"u","erasure_id":"e","occurred_at":"9999-12-31T23:59:59-23:59"}'
    publisher.send_raw(Topic.ERASURES, far, key=None, partition=0)
    part = SnapshotPart(request_id="r", model="unknown", partition=99)
    publisher.send(Topic.SNAPSHOT_PARTS, part, key="unknown")
    progress = b'{"model":"unknown","partition":99,"new_examples":1}'
    publisher.send_raw(Topic.TRAINING_PROGRESS, progress, key="unknown")
    publisher.send_raw(Topic.SNAPSHOT_COMMANDS, b"[" * 100_000, key=None, partition=0)
    done = FineTuneStatus(request_id="same-0", model="same", state=State.FAILED, at=now(), reasons=("because",))
    value = done.encode().replace(b"because", b"x" * 900_000)
    publisher.send_raw(Topic.TRAINING_REPORTS, value, key="same-0", partition_by="same")
    publisher.flush()

    def letters(records: list[Any]) -> list[Any]:
        return [record for record in records if record.topic == Topic.DEAD_LETTERS.named(settings.kafka.topic_prefix)]

    names_of_requests = ("unknown", "large", *(f"same-{number}" for number in range(150)))

    def complete(records: list[Any]) -> bool:
        return len(letters(records)) >= 7 and all(ended(name)(records) for name in names_of_requests)

    with Reader(settings, Topic.FINE_TUNE_STATUS, Topic.DEAD_LETTERS) as reader:
        reader.until(complete)
        # What follows is taken at once, by the same process.
        publisher.send_raw(Topic.CHAT_LOGS, b"{probe", key="k", partition=0)
        publisher.flush()
        records = reader.until(lambda records: len(letters(records)) >= 8, seconds=5)
    assert worker.alive
    final = [statuses(records, name)[-1] for name in names_of_requests]
    # "same-0" may still be active when its report comes.
    assert {status.state for status in final} <= {State.REJECTED, State.FAILED}
    assert all(len(status.encode()) < 20_000 for status in final)
    errors = [dict(letter.headers)[ERROR_HEADER].decode() for letter in letters(records)]
    assert len(errors) == 8
    assert any("key truncated from 100000 bytes" in error and "2100000 bytes" in error for error in errors)
    assert sum("left out, too large for this topic" in error for error in errors) == 2
    assert sum("partition 99, at most 3" in error for error in errors) == 2
