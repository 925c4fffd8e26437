"""The measured processes of the ingest benchmark: each starts with nothing prefetched and prints one JSON object."""

import asyncio
import json
import os
import sys
import time
from typing import Any

import psutil

from foldtune.settings import Settings
from foldtune.topics import Topic


def show(**figures: float) -> None:
    """The last line of a measured process."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def raw(settings: Settings) -> None:
    """A bare consumer that decodes the logs and forgets them."""
    asyncio.run(_consume(settings, Topic.CHAT_LOGS.named(settings.kafka.topic_prefix), decode=True))


def changelog(settings: Settings) -> None:
    """A bare consumer of the state's changelog: the limit for rebuilding."""
    asyncio.run(_consume(settings, f"{settings.worker.app_id}-training-sets-changelog", decode=False))


async def _consume(settings: Settings, topic: str, *, decode: bool) -> None:
    from aiokafka import AIOKafkaConsumer, TopicPartition  # noqa: PLC0415  its import is not to be measured elsewhere

    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await consumer.start()
    places = [TopicPartition(topic, partition) for partition in range(settings.kafka.partitions)]
    ends = await consumer.end_offsets(places)
    open_places = {place for place in places if ends[place]}
    started = time.perf_counter()
    consumer.assign(places)
    await consumer.seek_to_beginning()
    events = 0
    while open_places:
        for records in (await consumer.getmany(timeout_ms=500, max_records=2000)).values():
            if decode:
                for record in records:
                    json.loads(record.value)
            events += len(records)
        for place in list(open_places):
            if await consumer.position(place) >= ends[place]:
                open_places.discard(place)
    seconds = time.perf_counter() - started
    await consumer.stop()
    show(events=events, seconds=seconds, per_second=events / seconds)


def noop(settings: Settings) -> None:
    """A Faust agent as its documentation writes it, which does nothing."""
    import faust  # noqa: PLC0415

    # The defaults, but for what a test broker and a bounded run need.
    app = faust.App(
        settings.worker.app_id,
        broker=f"kafka://{settings.kafka.bootstrap_servers}",
        web_enabled=False,
        topic_disable_leader=True,
    )
    topic = app.topic(Topic.CHAT_LOGS.named(settings.kafka.topic_prefix), value_serializer="json")
    wanted = int(os.environ["BENCH_EVENTS"])
    seen, started = 0, 0.0

    @app.agent(topic)
    async def nothing(stream: Any) -> None:
        nonlocal seen
        async for _ in stream:
            seen += 1
            if seen == wanted:
                seconds = time.perf_counter() - started
                show(events=seen, seconds=seconds, per_second=seen / seconds)
                os._exit(0)

    async def assigned(*_: Any, **__: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    signals: Any = app
    signals.on_partitions_assigned.connect(assigned, weak=False)
    _run(app)


def worker(settings: Settings) -> None:
    """The product's worker. Watched from inside, for when it may begin to fetch and for how far it is."""
    from foldtune.object_store import S3ObjectStore  # noqa: PLC0415
    from streams.partitions.consumer import offset_key  # noqa: PLC0415
    from streams.worker.app import create_app  # noqa: PLC0415
    from streams.worker.process import collect_garbage_less_often  # noqa: PLC0415

    launched = time.perf_counter()
    app: Any = create_app(settings, S3ObjectStore(settings.s3))
    collect_garbage_less_often()
    ends = {int(place): end for place, end in json.loads(os.environ["BENCH_ENDS"]).items()}
    started = cpu_at_start = 0.0

    def reached() -> dict[int, int]:
        store = app.tables["training-sets"].data
        return {place: int(store._db_for_partition(place).get(offset_key(Topic.CHAT_LOGS)) or 0) for place in ends}

    async def watch() -> None:
        begun = reached()
        while any(reached()[place] < end for place, end in ends.items()):
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - started
        events = sum(ends.values()) - sum(begun.values())
        show(
            events=events,
            seconds=seconds,
            per_second=events / seconds,
            cpu_seconds=time.process_time() - cpu_at_start,
            ready_seconds=started - launched,
            rss=psutil.Process().memory_info().rss,
        )
        # As after a crash: the next run must find what is durable, not what a graceful stop tidied up.
        os._exit(0)

    async def recovered(*_: Any) -> None:
        nonlocal started, cpu_at_start
        if not started:
            started, cpu_at_start = time.perf_counter(), time.process_time()
            app.add_future(watch())

    app.tables["training-sets"].on_recover(recovered)
    _run(app)


def _run(app: Any) -> None:
    import faust  # noqa: PLC0415

    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False, override_logging=False).execute_from_commandline()


if __name__ == "__main__":
    {"raw": raw, "changelog": changelog, "noop": noop, "worker": worker}[sys.argv[1]](Settings())
