"""The stream worker, optionally with one correction disabled, to prove that the harness detects it.

``python -m tests.chaos.worker`` reads the name of the correction from ``CHAOS_WITHOUT``.
"""

import asyncio
import itertools
import os
from contextlib import suppress
from typing import Any

from foldtune.settings import load_settings
from streams.requests.coordinator import Coordinator
from streams.training_sets import fold
from streams.training_sets.ingest import Ingest
from streams.training_sets.state_events import Feedback
from streams.worker import process

DELAY_SECONDS = 3.0
_running: set[asyncio.Task[None]] = set()


def _run_later(work: Any) -> None:
    """Run ``work`` in the background, so that its record is acknowledged before it is handled."""

    async def run_delayed() -> None:
        await asyncio.sleep(DELAY_SECONDS)
        with suppress(Exception):
            await work

    task = asyncio.create_task(run_delayed())
    _running.add(task)
    task.add_done_callback(_running.discard)


def without_durable_ingest() -> None:
    """Acknowledge blocks of the data topics before they are stored."""
    handle = Ingest.handle

    async def acknowledge_early(self: Ingest, *block: Any) -> None:
        _run_later(handle(self, *block))

    Ingest.handle = acknowledge_early  # type: ignore[method-assign,assignment]


def without_durable_requests() -> None:
    """Acknowledge control events before they are handled."""
    handle = Coordinator.handle

    async def acknowledge_early(self: Coordinator, *event: Any) -> None:
        _run_later(handle(self, *event))

    Coordinator.handle = acknowledge_early  # type: ignore[method-assign,assignment]


def without_unique_records() -> None:
    """Count a redelivered or duplicated log again."""
    entity_id, number = fold.entity_id, itertools.count()
    fold.entity_id = lambda event: (
        entity_id(event) if isinstance(event, Feedback) else f"{entity_id(event)} {next(number)}"
    )


def without_order_of_events() -> None:
    """Order versions by offset instead of event time."""
    fold._version_order = lambda record: (record.offset, record.position)  # type: ignore[assignment,return-value]


WITHOUT = {
    "durable-ingest": without_durable_ingest,
    "durable-requests": without_durable_requests,
    "unique-records": without_unique_records,
    "order-of-events": without_order_of_events,
}

# Outside the guard: the export process, which folds too, imports this module as well.
if correction := os.environ.get("CHAOS_WITHOUT"):
    WITHOUT[correction]()

if __name__ == "__main__":
    process.run(load_settings())
