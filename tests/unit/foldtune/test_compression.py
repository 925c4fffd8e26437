"""A batch that decompresses to too much becomes one empty record; all others are decoded as they are."""

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.record.memory_records import MemoryRecords as AiokafkaRecords
from hypothesis import given
from hypothesis import strategies as st
from kafka.record import MemoryRecords, MemoryRecordsBuilder

from foldtune.compression import MAX_BYTES, bounded

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
MAX = 100_000


def batch(codec: str, values: list[bytes], offset: int = 0) -> bytes:
    """A record batch as the broker stores it."""
    builder = MemoryRecordsBuilder(2, CODECS[codec], 10_000_000)
    for value in values:
        builder.append(timestamp=1_700_000_000_000, key=b"k", value=value, headers=[])
    builder.close()
    return struct.pack(">q", offset) + bytes(builder.buffer())[8:]


def decoded(records_class: Callable[..., Any], content: bytes) -> tuple[list[tuple[int, bytes | None]], int]:
    """Offsets and values, and the offset after the last batch."""
    records, found, after = records_class(content), [], 0
    while records.has_next():
        each = records.next_batch()
        assert each.validate_crc()
        found += [(record.offset, record.value) for record in each]
        after = each.next_offset
    return found, after


@pytest.mark.parametrize("records_class", [MemoryRecords, AiokafkaRecords])
@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_within_the_bound_is_left_alone(records_class: Callable[..., Any], codec: str) -> None:
    content = batch(codec, [b"one" * 100, b"two"]) + batch(codec, [b"three"], offset=2)
    assert bounded(content, MAX) is content
    assert decoded(records_class, content) == ([(0, b"one" * 100), (1, b"two"), (2, b"three")], 3)


@pytest.mark.parametrize("records_class", [MemoryRecords, AiokafkaRecords])
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_batch_over_the_bound_becomes_one_empty_record(records_class: Callable[..., Any], codec: str) -> None:
    good = batch(codec, [b"good"])
    content = good + batch(codec, [bytes(MAX), b"x"], offset=1) + batch(codec, [b"next"], offset=3)
    assert decoded(records_class, bounded(content, MAX)) == ([(0, b"good"), (2, None), (3, b"next")], 4)
    last = bounded(batch(codec, [bytes(MAX // 300)] * 300, offset=1), MAX)
    assert decoded(records_class, last) == ([(300, None)], 301)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_batch_that_shrinks_well_is_measured_without_a_buffer_of_the_whole_bound(codec: str) -> None:
    """It is cleared in the worker's event loop, for each such batch."""
    content = batch(codec, [b"v" * 1_000_000])
    tracemalloc.start()
    try:
        assert bounded(content) is content
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES // 8
    finally:
        tracemalloc.stop()


def test_snappy_without_framing_is_bounded_too() -> None:
    import cramjam

    whole = bytearray(batch("none", [bytes(MAX)]))
    content = bytes(whole[:61]) + bytes(cramjam.snappy.compress_raw(bytes(whole[61:])))
    raw = bytearray(content)
    struct.pack_into(">i", raw, 8, len(raw) - 12)
    struct.pack_into(">h", raw, 21, CODECS["snappy"])
    assert decoded(MemoryRecords, bounded(bytes(raw), MAX)) == ([(0, None)], 1)
    assert bounded(bytes(raw), 2 * MAX) == bytes(raw)


def test_snappy_with_a_block_of_negative_length_is_damaged() -> None:
    """Else its blocks would be counted backwards, for ever."""
    raw = bytearray(batch("snappy", [bytes(1_000)]))
    assert raw[61:69] == b"\x82SNAPPY\0"
    struct.pack_into(">i", raw, 61 + 16, -4)
    assert decoded(MemoryRecords, bounded(bytes(raw), MAX)) == ([(0, None)], 1)


def test_batches_beyond_the_bound_together_are_left_for_the_next_fetch() -> None:
    batches = [batch("zstd", [bytes(40_000)], offset=offset) for offset in range(5)]
    assert bounded(b"".join(batches), MAX) == b"".join(batches[:2])
    oversized = batch("zstd", [bytes(MAX)], offset=5)
    found, _ = decoded(MemoryRecords, bounded(oversized + b"".join(batches), MAX))
    assert [value is None for _, value in found] == [True, False, False]


def test_the_broker_cuts_the_last_batch_of_a_fetch() -> None:
    content = batch("gzip", [b"whole"]) + batch("gzip", [b"cut"])[:-3]
    assert bounded(content, MAX) is content


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_are_an_error(noise: bytes, position: int) -> None:
    content = bytearray(batch("zstd", [b"a" * 100]) * 2)
    content[position : position + len(noise)] = noise
    bounded(bytes(content), MAX)
