"""Consumes topics partition by partition; the next offset lies in the same changelog partition as the state it made.

It is written after that state is durable. Whoever rebuilds the state rebuilds the offset with it: there is no second
record of progress that could run ahead of the state, as the committed offsets of a consumer group can. A crash between
the two writes redelivers records, and so does a zombie that writes an older offset (``streams.partitions``); handling
records again changes nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from faust.exceptions import FaustError
from msgspec import structs

from foldtune.errors import TRANSIENT_ERRORS, RecordRefusedError
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic
from streams.errors import ErasureKeyMissingError, OutdatedViewError, PartitionLostError
from streams.partitions.broker_clock import CLOCK
from streams.partitions.broker_reader import FETCH_WAIT_MS
from streams.partitions.changelog_table import ChangelogTable, Changes
from streams.partitions.connection import aiokafka_options
from streams.partitions.lost_records import continued, is_recreated, tell_losses
from streams.partitions.positions import (
    History,
    Position,
    find_position,
    position_changes,
    stored_position,
    with_plausible_times,
    with_state_offsets,
)
from streams.partitions.producing import brokers_at_fault
from streams.partitions.topic_watch import TopicWatch

_log = structlog.get_logger()
_POLL_SECONDS = 0.2
_RETRY_SECONDS = 0.5
# The default of 1 MiB a partition would cut a backlog into blocks of a thousand logs.
_FETCH_BYTES = 4 << 20

# Handles some records of one partition, in order; when it returns, their effects are durable. A record's timestamp is
# plausible, or 0, and its offset the state's (``streams.partitions.positions``).
Handler = Callable[[Topic, int, Sequence[Any]], Awaitable[None]]
Write = Callable[[int, Changes], Awaitable[object]]
# Sends a record that could not be handled to the dead letters, with the error.
Reject = Callable[[Topic, Any, Exception], Awaitable[None]]

# Brokers, object store, disk, memory, another worker: no record is at fault for these.
_SURROUNDINGS = (
    *TRANSIENT_ERRORS,
    KafkaError,
    FaustError,
    OSError,
    MemoryError,
    BrokenExecutor,
    PartitionLostError,
    OutdatedViewError,
    ErasureKeyMissingError,
)


def is_at_fault(error: Exception) -> bool:
    """Whether what was handled is at fault for an error, and not the surroundings, which every record would meet."""
    if isinstance(error, RecordRefusedError):
        return True
    # RocksDB's errors are of no class of their own.
    return not isinstance(error, _SURROUNDINGS) and type(error) is not Exception


class PartitionConsumer:
    """Consumes those partitions of some topics that this worker owns, each in a task of its own."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: tuple[Topic, ...],
        table: ChangelogTable,
        *,
        write: Write,
        handle: Handler,
        reject: Reject,
        block_records: int,
        watch: TopicWatch | None = None,
    ) -> None:
        """``handle`` gets blocks of at most ``block_records``; ``write`` stores the next offset in ``table``.

        Without ``watch`` a topic that was made anew, and has grown longer since, is not told from its former self.
        A record for which ``handle`` raises an error that the surroundings are not at fault for gets to ``reject``.
        """
        self._kafka = kafka
        self._topics = topics
        self._table = table
        self._write = write
        self._handle = handle
        self._reject = reject
        self._block_records = block_records
        self._watch = watch
        # Of partitions that are being consumed: the one in the table may go back, when a foreign write is applied.
        self._positions: dict[tuple[Topic, int], Position] = {}
        self._stopping = False

    def next_offset(self, topic: Topic, partition: int) -> int:
        """The offset of the next record to handle; the effects of all before it are durable."""
        return self.position(topic, partition).offset

    def position(self, topic: Topic, partition: int) -> Position:
        """Where a topic is continued."""
        return self._positions.get((topic, partition)) or stored_position(self._table, topic, partition)

    async def run(self) -> None:
        """Consume until ``stop``; raises what neither the client nor ``handle`` can recover from."""
        async with (
            AIOKafkaConsumer(
                **aiokafka_options(self._kafka),
                auto_offset_reset="none",
                isolation_level="read_committed",
                max_partition_fetch_bytes=_FETCH_BYTES,
                fetch_max_wait_ms=FETCH_WAIT_MS,
            ) as consumer,
            asyncio.TaskGroup() as group,
        ):
            # Assigned once and for all: a new assignment would lose every partition's position.
            assignment = [tp for partition in range(self._kafka.partitions) for tp in self._topic_partitions(partition)]
            consumer.assign(assignment)
            consumer.pause(*assignment)
            tasks: dict[int, asyncio.Task[None]] = {}
            while not self._stopping:
                for partition in range(self._kafka.partitions):
                    generation = self._table.owned_generation(partition)
                    if generation is not None and (partition not in tasks or tasks[partition].done()):
                        tasks[partition] = group.create_task(self._consume(consumer, partition, generation))
                await asyncio.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Have ``run`` return once the blocks in flight are handled."""
        self._stopping = True

    async def _consume(self, consumer: Any, partition: int, generation: int) -> None:
        """Consume a partition as long as it is owned in this generation."""
        topic_partitions = self._topic_partitions(partition)
        out_of_range = False
        while self._active(partition, generation):
            for topic in topic_partitions.values():
                self._positions.pop((topic, partition), None)
            try:
                await self._begin_new(consumer, partition)
                if out_of_range or self._recreated(partition):
                    await self._continue_lost(consumer, partition)
                out_of_range = False
                for tp, topic in topic_partitions.items():
                    consumer.seek(tp, self.next_offset(topic, partition))
                consumer.resume(*topic_partitions)
                await self._poll(consumer, partition, generation)
            except OffsetOutOfRangeError as error:
                _log.warning("stored offset not on the topic", partition=partition, error=str(error))
                out_of_range = True
                await asyncio.sleep(_RETRY_SECONDS)
            except PartitionLostError as error:
                _log.info("partition lost", partition=partition, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception as error:
                if not brokers_at_fault(error):
                    raise
                # From the stored offsets again, until the brokers answer.
                _log.warning("brokers unresponsive, records will be repeated", partition=partition, error=repr(error))
                await asyncio.sleep(_RETRY_SECONDS)
        consumer.pause(*topic_partitions)
        for topic in topic_partitions.values():
            self._positions.pop((topic, partition), None)

    async def _begin_new(self, consumer: Any, partition: int) -> None:
        """Store where topics begin that were never read: what expires from there on is a loss."""
        new = {
            tp: topic
            for tp, topic in self._topic_partitions(partition).items()
            if find_position(self._table, topic, partition) is None
        }
        if not new:
            return
        changes: dict[bytes, bytes | None] = {}
        for tp, first in (await consumer.beginning_offsets(list(new))).items():
            changes |= position_changes(new[tp], Position(first, 0, History(topic_id=self._topic_id(new[tp]))))
            if first:
                # By another app_id, perhaps.
                _log.info("topic begun behind expired records", topic=tp.topic, partition=partition, offset=first)
        await self._write(partition, changes)

    async def _continue_lost(self, consumer: Any, partition: int) -> None:
        """Have topics that no longer have the next offset be continued where they begin; what is lost is told once."""
        topic_partitions = self._topic_partitions(partition)
        if self._watch:
            # It may have been made anew just now.
            await self._watch.look()
        firsts = await consumer.beginning_offsets(list(topic_partitions))
        ends = await consumer.end_offsets(list(topic_partitions))
        for tp, topic in topic_partitions.items():
            before = self.position(topic, partition)
            after = continued(before, firsts[tp], ends[tp], self._topic_id(topic), CLOCK.now())
            if after != before:
                await self._store_position(topic, partition, after)
                tell_losses(topic, partition, before, after)

    def _recreated(self, partition: int) -> bool:
        return any(is_recreated(self.position(topic, partition), self._topic_id(topic)) for topic in self._topics)

    def _topic_id(self, topic: Topic) -> str:
        return self._watch.ids.get(topic.named(self._kafka.topic_prefix), "") if self._watch else ""

    async def _poll(self, consumer: Any, partition: int, generation: int) -> None:
        topic_partitions = self._topic_partitions(partition)
        while self._active(partition, generation) and not self._recreated(partition):
            fetched = await consumer.getmany(*topic_partitions, timeout_ms=int(_POLL_SECONDS * 1000))
            for tp, topic in topic_partitions.items():
                for block in _blocks(fetched.get(tp, ()), self._block_records):
                    if not self._active(partition, generation):
                        return
                    before = self.position(topic, partition)
                    records, after = with_plausible_times(block, before)
                    await self._handle_or_reject(topic, partition, with_state_offsets(records, before.history.shift))
                    await self._store_position(topic, partition, after)
                # The marker at the end of a transaction takes an offset and is never fetched; it may be the last one.
                position = self.position(topic, partition)
                offset = max(position.offset, await consumer.position(tp))
                # A topic at rest is known by its id, too: it may be made anew before its next record.
                is_unknown = not position.history.topic_id and self._topic_id(topic)
                if position.offset < offset or is_unknown:
                    await self._store_position(topic, partition, position._replace(offset=offset))

    async def _store_position(self, topic: Topic, partition: int, position: Position) -> None:
        if not position.history.topic_id:
            position = position._replace(history=structs.replace(position.history, topic_id=self._topic_id(topic)))
        await self._write(partition, position_changes(topic, position))
        self._positions[topic, partition] = position

    async def _handle_or_reject(self, topic: Topic, partition: int, block: Sequence[Any]) -> None:
        """Handle a block; halve it where that fails, until the record at fault is alone, and reject that one."""
        try:
            await self._handle(topic, partition, block)
        except Exception as error:
            # An executor that is closed already raises RuntimeError.
            if not is_at_fault(error) or (self._stopping and isinstance(error, RuntimeError)):
                raise
            if len(block) == 1:
                await self._reject(topic, block[0], error)
                return
        else:
            return
        for half in _blocks(block, (len(block) + 1) // 2):
            await self._handle_or_reject(topic, partition, half)

    def _active(self, partition: int, generation: int) -> bool:
        return not self._stopping and self._table.owned_generation(partition) == generation

    def _topic_partitions(self, partition: int) -> dict[TopicPartition, Topic]:
        return {TopicPartition(topic.named(self._kafka.topic_prefix), partition): topic for topic in self._topics}


def _blocks(records: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]
