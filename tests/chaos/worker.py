"""A worker of the harness: the product's, or one with a correction switched off, to see that the harness notices.

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


def _later(work: Any) -> None:
    """What is acknowledged before it is done."""

    async def after_a_while() -> None:
        await asyncio.sleep(DELAY_SECONDS)
        with suppress(Exception):
            await work

    task = asyncio.create_task(after_a_while())
    _running.add(task)
    task.add_done_callback(_running.discard)


def without_durable_ingest() -> None:
    """Blocks of the data topics are acknowledged before they are stored."""
    handle = Ingest.handle

    async def hasty(self: Ingest, *block: Any) -> None:
        _later(handle(self, *block))

    Ingest.handle = hasty  # type: ignore[method-assign,assignment]


def without_durable_requests() -> None:
    """Control events are acknowledged before they are handled."""
    handle = Coordinator.handle

    async def hasty(self: Coordinator, *event: Any) -> None:
        _later(handle(self, *event))

    Coordinator.handle = hasty  # type: ignore[method-assign,assignment]


def without_unique_records() -> None:
    """A replayed or repeated log counts again."""
    entity_id, number = fold.entity_id, itertools.count()
    fold.entity_id = lambda event: (
        entity_id(event) if isinstance(event, Feedback) else f"{entity_id(event)} {next(number)}"
    )


def without_order_of_events() -> None:
    """What arrives last counts, instead of what happened last."""
    fold._version_order = lambda record: (record.offset, record.position)  # type: ignore[assignment,return-value]


WITHOUT = {
    "durable-ingest": without_durable_ingest,
    "durable-requests": without_durable_requests,
    "unique-records": without_unique_records,
    "order-of-events": without_order_of_events,
}

# Outside of the guard: the process that folds for exports imports this module as well.
if correction := os.environ.get("CHAOS_WITHOUT"):
    WITHOUT[correction]()

if __name__ == "__main__":
    process.run(load_settings())
