"""The stream worker with hooks for faults, optionally with corrections disabled, to prove that it is detected.

``python -m tests.chaos.worker`` reads from the environment: ``CHAOS_WITHOUT``, the names of the corrections;
``CHAOS_BROKER``, the broker's port and that of the proxy to use in its place; ``CHAOS_CLOCK``, a file with the seconds
by which this process's clock is wrong.
"""

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import msgspec

from foldtune import events
from foldtune.object_store import S3ObjectStore
from foldtune.settings import load_settings
from streams.partitions import consumer, lost_records
from streams.partitions.changelog_table import ChangelogTable
from streams.partitions.positions import Position
from streams.publishing.publisher import FaustEventPublisher
from streams.requests import lifecycle
from streams.requests.coordinator import Coordinator
from streams.training_sets import decoding, fold
from streams.training_sets.ingest import Ingest
from streams.training_sets.state_events import Feedback
from streams.worker import process

DELAY_SECONDS = 3.0
_running: set[asyncio.Task[None]] = set()


# ── Hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def connect_through(proxy: str) -> None:
    """Connect to the proxy wherever aiokafka would connect to the broker; ``proxy`` is both ports."""
    broker_port, proxy_port = map(int, proxy.split(":"))
    connect = asyncio.BaseEventLoop.create_connection

    async def redirected(self: Any, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        return await connect(self, factory, host, proxy_port if port == broker_port else port, **options)

    asyncio.BaseEventLoop.create_connection = redirected  # type: ignore[method-assign,assignment]


def skew_clock(file: Path) -> None:
    """Add the seconds in ``file`` to the wall clock, from when they are written there; none without the file."""
    true_time, skew, read_at = time.time, 0.0, float("-inf")

    def seconds() -> float:
        nonlocal skew, read_at
        if time.monotonic() > read_at + 0.2:
            read_at = time.monotonic()
            skew = float(file.read_text() or 0) if file.exists() else 0.0
        return skew

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=seconds())

    # All of the worker's times come from ``events.now``; those of its Kafka records from ``time.time``.
    events.datetime = Clock  # type: ignore[attr-defined]
    time.time = lambda: true_time() + seconds()


# ── Sabotage ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _later(work: Callable[..., Any]) -> Any:
    """Does the work in the background, so that its record is acknowledged before it is handled."""

    async def run_delayed(arguments: Any) -> None:
        await asyncio.sleep(DELAY_SECONDS)
        with suppress(Exception):
            await work(*arguments)

    async def acknowledge_early(*arguments: Any) -> None:
        task = asyncio.create_task(run_delayed(arguments))
        _running.add(task)
        task.add_done_callback(_running.discard)

    return acknowledge_early


def without_durable_ingest() -> None:
    """Acknowledge blocks of the data topics before they are stored."""
    Ingest.handle = _later(Ingest.handle)  # type: ignore[method-assign]


def without_durable_requests() -> None:
    """Acknowledge control events before they are handled."""
    Coordinator.handle = _later(Coordinator.handle)  # type: ignore[method-assign]


def without_durable_dead_letters() -> None:
    """Acknowledge a rejected record before its dead letter is published."""
    send = FaustEventPublisher.send_to_dead_letters
    FaustEventPublisher.send_to_dead_letters = _later(send)  # type: ignore[method-assign]


def without_durable_snapshots() -> None:
    """Announce a job before the manifest of its snapshot is stored."""
    put = S3ObjectStore.put_if_absent

    def put_later(store: Any, key: str, content: bytes) -> bool:
        # Not what probes the store at the start.
        if not key.startswith("snapshots/"):
            return put(store, key, content)
        threading.Timer(4 * DELAY_SECONDS, put, (store, key, content)).start()
        return True

    S3ObjectStore.put_if_absent = put_later  # type: ignore[method-assign,assignment]


def without_unique_records() -> None:
    """Count a redelivered or duplicated log again."""
    entity_id, number = fold.entity_id, itertools.count()
    fold.entity_id = lambda event: (
        entity_id(event) if isinstance(event, Feedback) else f"{entity_id(event)} {next(number)}"
    )


def without_order_of_events() -> None:
    """Order versions by offset instead of event time."""
    fold._version_order = lambda record: (record.offset, record.position)  # type: ignore[assignment,return-value]


def without_durable_store() -> None:
    """Move a store's checkpoint before the store has what lies before it."""
    store = ChangelogTable._rocksdb

    class LateStore:
        def __init__(self, database: Any) -> None:
            self._database = database

        def __getattr__(self, name: str) -> Any:
            return getattr(self._database, name)

        def write(self, batch: Any) -> None:
            asyncio.get_running_loop().call_later(2 * DELAY_SECONDS, self._database.write, batch)

    @contextmanager
    def late(self: Any, partition: int) -> Iterator[Any]:
        with store(self, partition) as database:
            yield LateStore(database) if self._table.name == "training-sets" else database

    ChangelogTable._rocksdb = late  # type: ignore[method-assign]


def without_broker_time() -> None:
    """Judge events by this worker's clock."""
    decoding.written_at = lambda timestamp_ms: events.now()  # type: ignore[attr-defined]  # noqa: ARG005


def without_counted_losses() -> None:
    """Continue a topic that has lost records without a word."""
    continued = lost_records.continued

    def silent(position: Position, *arguments: Any) -> Position:
        after = continued(position, *arguments)
        return after._replace(history=msgspec.structs.replace(after.history, lost=position.history.lost))

    consumer.continued = silent  # type: ignore[attr-defined,assignment]


def without_known_folders() -> None:
    """Train although nothing is known of what a request names."""
    lifecycle._rejection_reasons = lambda *_: iter(())


WITHOUT = {
    "durable-ingest": without_durable_ingest,
    "durable-requests": without_durable_requests,
    "durable-dead-letters": without_durable_dead_letters,
    "durable-snapshots": without_durable_snapshots,
    "unique-records": without_unique_records,
    "order-of-events": without_order_of_events,
    "durable-store": without_durable_store,
    "broker-time": without_broker_time,
    "counted-losses": without_counted_losses,
    "known-folders": without_known_folders,
}

# Outside the guard: the export process, which folds too, imports this module as well.
if clock := os.environ.get("CHAOS_CLOCK"):
    skew_clock(Path(clock))
if broker := os.environ.get("CHAOS_BROKER"):
    connect_through(broker)
for correction in filter(None, os.environ.get("CHAOS_WITHOUT", "").split(",")):
    WITHOUT[correction]()

if __name__ == "__main__":
    process.run(load_settings())
