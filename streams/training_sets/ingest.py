"""Ingests blocks of raw messages into the rolling training sets."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import structlog

from foldtune.bounds import Bounds, written_at
from foldtune.reasons import Rejected
from foldtune.settings import Sets
from foldtune.topics import KEYED_BY_FOLDER, Topic
from streams.metrics import NOT_KEPT, RECORDS
from streams.publishing.dead_letters import send_all_to_dead_letters
from streams.publishing.publisher import EventPublisher
from streams.threads import DECODING, run_in
from streams.training_sets.decoding import DecodeResult, decode_block, reject_misplaced
from streams.training_sets.state_events import StateRecord, folder_of
from streams.training_sets.store import TrainingSets

_log = structlog.get_logger()


class Ingest:
    """Handles the data topics block by block."""

    def __init__(
        self, sets: TrainingSets, publisher: EventPublisher, bounds: Bounds, limits: Sets, partitions: int | None
    ) -> None:
        """``partitions`` is their number where each record must be in the partition of its folder."""
        self._sets = sets
        self._publisher = publisher
        self._bounds = bounds
        self._limits = limits
        self._partitions = partitions
        self._least_max_age = min((limits.max_age, *(limits.of(folder_id).max_age for folder_id in limits.folders)))

    async def handle(self, topic: Topic, partition: int, messages: Sequence[Any]) -> None:
        """Store the valid records and send the rest to the dead letters; both are durable on return.

        Raises:
            PartitionLostError: another worker owns the partition now; the block is redelivered to it.
        """
        # In a thread: a crafted block may take long to decode, and a worker without heartbeats loses its partitions.
        results = await run_in(DECODING, self._decode, topic, partition, messages)
        records = [result for result in results if isinstance(result, StateRecord)]
        # Before the dead letters: a record that cannot be stored leads to another try, without them.
        await self._sets.add(partition, topic, records)
        RECORDS.labels(topic.label).inc(len(records))
        if topic is Topic.CHAT_LOGS and (too_old := self._too_old(messages, records)):
            await self._sets.count_too_old(partition, too_old)
            count = sum(map(len, too_old.values()))
            NOT_KEPT.labels(topic.label, "too_old").inc(count)
            _log.warning("logs too old for any training set", partition=partition, logs=count, folders=len(too_old))
        if len(records) < len(results):
            by_offset = {message.offset: message for message in messages}
            rejected = [(by_offset[result.offset], result) for result in results if isinstance(result, Rejected)]
            await send_all_to_dead_letters(self._publisher, topic, rejected)

    def _decode(self, topic: Topic, partition: int, messages: Sequence[Any]) -> list[DecodeResult]:
        results = decode_block(topic, messages, self._bounds)
        if self._partitions is None or topic not in KEYED_BY_FOLDER:
            return results
        return reject_misplaced(results, messages, partition, self._partitions)

    def _too_old(self, messages: Sequence[Any], records: Sequence[StateRecord]) -> dict[str, list[int]]:
        """By folder, the offsets of logs that were older than its ``max_age`` when they were written to the topic."""
        latest = written_at(max([message.timestamp for message in messages]))
        if latest is None:
            return {}
        oldest = latest - self._least_max_age
        candidates = [record for record in records if record.event.occurred_at < oldest]
        if not candidates:
            return {}
        written = {message.offset: written_at(message.timestamp) for message in messages}
        found: dict[str, list[int]] = defaultdict(list)
        for record in candidates:
            folder_id, at = folder_of(record.event), written[record.offset]
            if at is not None and record.event.occurred_at < at - self._limits.of(folder_id).max_age:
                found[folder_id].append(record.offset)
        return found
