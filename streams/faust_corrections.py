"""What must be put right in Faust 0.15.3 for foldtune to be exact, and the settings that use its public seams.

Each correction names what goes wrong without it. They touch private parts, so they stand in one place.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from aiokafka import TopicPartition
from faust.transport import consumer as faust_consumer
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP

_original_add_gap = faust_consumer.Consumer._add_gap


async def _add_gap(self: faust_consumer.Consumer, tp: TP, offset_from: int, offset_to: int) -> None:
    """Count the offsets between two messages as a gap, without the second message's own.

    As it comes, the message's own offset is in the gap too: it then counts as handled before it is, and commits stall
    on every input that has gaps (transactional, compacted, and blocks, which stand for many offsets).
    """
    await _original_add_gap(self, tp, offset_from, offset_to - 1)


_original_perform_seek = faust_consumer.ThreadDelegateConsumer.perform_seek


async def _perform_seek(self: faust_consumer.ThreadDelegateConsumer) -> None:
    """After a rebalance, go back to the beginning where nothing was ever committed.

    As it comes, only partitions with a committed offset are rewound. What was fetched from the others between the
    assignment and the end of recovery, and thrown away then, is not delivered until the next rebalance.
    """
    await _original_perform_seek(self)
    committed = self._committed_offset
    untouched = [tp for tp in self.assignment() if not committed.get(tp) and not self._is_changelog_tp(tp)]
    if untouched:
        await self._thread.seek_to_beginning(*(TopicPartition(tp.topic, tp.partition) for tp in untouched))


def correct_faust() -> None:
    """Put the corrections in place; more than once is no different from once."""
    faust_consumer.ThreadDelegateConsumer.perform_seek = _perform_seek  # type: ignore[assignment, method-assign]
    faust_consumer.Consumer._add_gap = _add_gap  # type: ignore[method-assign]


class Block:
    """Many records of one partition, delivered as one message that has the last one's offset."""

    __slots__ = (
        "checksum",
        "headers",
        "key",
        "offset",
        "partition",
        "serialized_key_size",
        "serialized_value_size",
        "timestamp",
        "timestamp_type",
        "topic",
        "value",
    )

    def __init__(self, records: list[Any]) -> None:
        last = records[-1]
        self.topic: str = last.topic
        self.partition: int = last.partition
        self.offset: int = last.offset
        self.timestamp: int = last.timestamp
        self.timestamp_type: int = last.timestamp_type
        self.headers: tuple[()] = ()
        self.key = b""
        self.value = records
        self.checksum = None
        self.serialized_key_size = 0
        self.serialized_value_size = 0


def block_scheduler(topics: frozenset[str], records: int) -> type[DefaultSchedulingStrategy]:
    """A scheduling strategy that delivers the named topics in blocks of at most ``records`` records.

    Faust spends about 100 µs a message on delivery alone; in blocks that is paid once for many.
    """

    class BlockScheduler(DefaultSchedulingStrategy):
        def iterate(self, fetched: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
            return super().iterate(
                {tp: list(_blocks(found, records)) if tp.topic in topics else found for tp, found in fetched.items()}
            )

    return BlockScheduler


def _blocks(records: list[Any], size: int) -> Iterator[Block]:
    for start in range(0, len(records), size):
        yield Block(records[start : start + size])
