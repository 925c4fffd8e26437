"""Ingests blocks of raw messages into the rolling training sets."""

from collections.abc import Sequence
from typing import Any

from foldtune.bounds import Bounds
from foldtune.reasons import Rejected
from foldtune.topics import Topic
from streams.metrics import RECORDS
from streams.publishing.dead_letters import send_to_dead_letters
from streams.publishing.publisher import EventPublisher
from streams.threads import DECODING, run_in
from streams.training_sets.decoding import decode_block
from streams.training_sets.state_events import StateRecord
from streams.training_sets.store import TrainingSets


class Ingest:
    """Handles the data topics block by block."""

    def __init__(self, sets: TrainingSets, publisher: EventPublisher, bounds: Bounds) -> None:
        self._sets = sets
        self._publisher = publisher
        self._bounds = bounds

    async def handle(self, topic: Topic, partition: int, messages: Sequence[Any]) -> None:
        """Store the valid records and send the rest to the dead letters; both are durable on return.

        Raises:
            PartitionLostError: another worker owns the partition now; the block is redelivered to it.
        """
        # In a thread: a crafted block may take long to decode, and a worker without heartbeats loses its partitions.
        results = await run_in(DECODING, decode_block, topic, messages, self._bounds)
        records = [result for result in results if isinstance(result, StateRecord)]
        # Before the dead letters: a record that cannot be stored leads to another try, without them.
        await self._sets.add(partition, topic, records)
        RECORDS.labels(topic.label).inc(len(records))
        if len(records) < len(results):
            by_offset = {message.offset: message for message in messages}
            # One at a time, so that dead letters keep the order of the topic.
            for result in results:
                if isinstance(result, Rejected):
                    await send_to_dead_letters(self._publisher, topic, by_offset[result.offset], result)
