"""From blocks of raw messages to the rolling training sets."""

import asyncio
from collections.abc import Sequence
from typing import Any

from foldtune.reasons import Rejected
from foldtune.settings import Bounds
from foldtune.topics import Topic
from streams.metrics import RECORDS
from streams.publishing.dead_letters import send_to_dead_letters
from streams.publishing.publisher import EventPublisher
from streams.training_sets.decoding import Record, decode_block
from streams.training_sets.store import TrainingSets


class Ingest:
    """Takes the data topics in, block by block."""

    def __init__(self, sets: TrainingSets, outbox: EventPublisher, bounds: Bounds) -> None:
        self._sets = sets
        self._outbox = outbox
        self._bounds = bounds

    async def take(self, topic: Topic, partition: int, messages: Sequence[Any]) -> None:
        """Keep what is sound and put the rest aside; when this returns, both are durable.

        Raises:
            PartitionLostError: the block is its new owner's to take.
        """
        # In a thread: a block may be made to take long, and who is silent meanwhile loses the partition.
        outcomes = await asyncio.to_thread(decode_block, topic, messages, self._bounds)
        records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
        if len(records) < len(outcomes):
            by_offset = {message.offset: message for message in messages}
            # One after the other, so that they lie in the order in which they came.
            for outcome in outcomes:
                if isinstance(outcome, Rejected):
                    await send_to_dead_letters(self._outbox, topic, by_offset[outcome.offset], outcome)
        await self._sets.add(partition, topic, records)
        RECORDS.labels(topic.label).inc(len(records))
