"""The measured processes of ``benchmarks/ingest.py``: each starts with nothing prefetched and prints a JSON object."""

import asyncio
import json
import os
import sys
import time
from typing import Any

import psutil

from foldtune.settings import Settings
from foldtune.topics import Topic


def print_result(**measurements: float) -> None:
    """Print the JSON object, the last line of a measured process."""
    sys.stdout.write(json.dumps(measurements) + "\n")
    sys.stdout.flush()


def raw(settings: Settings) -> None:
    """A bare aiokafka consumer that decodes the logs and discards them."""
    asyncio.run(_consume(settings, Topic.CHAT_LOGS.named(settings.kafka.topic_prefix), decode=True))


def changelog(settings: Settings) -> None:
    """A bare aiokafka consumer of the changelog: an upper bound on the speed of recovery."""
    asyncio.run(_consume(settings, f"{settings.worker.app_id}-training-sets-changelog", decode=False))


async def _consume(settings: Settings, topic: str, *, decode: bool) -> None:
    from aiokafka import AIOKafkaConsumer, TopicPartition  # noqa: PLC0415  not part of the other kinds' start

    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await consumer.start()
    partitions = [TopicPartition(topic, number) for number in range(settings.kafka.partitions)]
    ends = await consumer.end_offsets(partitions)
    unfinished = {partition for partition in partitions if ends[partition]}
    started = time.perf_counter()
    consumer.assign(partitions)
    await consumer.seek_to_beginning()
    events = 0
    while unfinished:
        for records in (await consumer.getmany(timeout_ms=500, max_records=2000)).values():
            if decode:
                for record in records:
                    json.loads(record.value)
            events += len(records)
        for partition in list(unfinished):
            if await consumer.position(partition) >= ends[partition]:
                unfinished.discard(partition)
    seconds = time.perf_counter() - started
    await consumer.stop()
    print_result(events=events, seconds=seconds, per_second=events / seconds)


def noop(settings: Settings) -> None:
    """A Faust agent as in its documentation, with an empty body."""
    import faust  # noqa: PLC0415

    # The defaults, except for what a local broker and a bounded run need.
    app = faust.App(
        settings.worker.app_id,
        broker=f"kafka://{settings.kafka.bootstrap_servers}",
        web_enabled=False,
        topic_disable_leader=True,
    )
    topic = app.topic(Topic.CHAT_LOGS.named(settings.kafka.topic_prefix), value_serializer="json")
    expected = int(os.environ["BENCH_EVENTS"])
    events, started = 0, 0.0

    @app.agent(topic)
    async def discard(stream: Any) -> None:
        nonlocal events
        async for _ in stream:
            events += 1
            if events == expected:
                seconds = time.perf_counter() - started
                print_result(events=events, seconds=seconds, per_second=events / seconds)
                os._exit(0)

    async def assigned(*_: Any, **__: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    signals: Any = app
    signals.on_partitions_assigned.connect(assigned, weak=False)
    _run(app)


def worker(settings: Settings) -> None:
    """foldtune's worker, measured inside its process: from the end of recovery until its table has all end offsets."""
    from foldtune.object_store import S3ObjectStore  # noqa: PLC0415
    from streams.partitions.positions import offset_key  # noqa: PLC0415
    from streams.worker.app import create_app  # noqa: PLC0415
    from streams.worker.process import collect_garbage_less_often  # noqa: PLC0415

    launched = time.perf_counter()
    app: Any = create_app(settings, S3ObjectStore(settings.s3))
    app.conf.datadir.mkdir(parents=True, exist_ok=True)
    collect_garbage_less_often()
    ends = {int(partition): end for partition, end in json.loads(os.environ["BENCH_ENDS"]).items()}
    started = cpu_at_start = 0.0

    def next_offsets() -> dict[int, int]:
        store, key = app.tables["training-sets"].data, offset_key(Topic.CHAT_LOGS)
        return {partition: int(store._db_for_partition(partition).get(key) or 0) for partition in ends}

    async def wait_for_ends() -> None:
        starts = next_offsets()
        while any(next_offsets()[partition] < end for partition, end in ends.items()):
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - started
        events = sum(ends.values()) - sum(starts.values())
        print_result(
            events=events,
            seconds=seconds,
            per_second=events / seconds,
            cpu_seconds=time.process_time() - cpu_at_start,
            ready_seconds=started - launched,
            rss=psutil.Process().memory_info().rss,
        )
        # Exit as in a crash: the next run must start from what is durable, without the work of a graceful stop.
        os._exit(0)

    async def recovered(*_: Any) -> None:
        nonlocal started, cpu_at_start
        if not started:
            started, cpu_at_start = time.perf_counter(), time.process_time()
            app.add_future(wait_for_ends())

    app.tables["training-sets"].on_recover(recovered)
    _run(app)


def _run(app: Any) -> None:
    import faust  # noqa: PLC0415

    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False, override_logging=False).execute_from_commandline()


if __name__ == "__main__":
    {"raw": raw, "changelog": changelog, "noop": noop, "worker": worker}[sys.argv[1]](Settings())
