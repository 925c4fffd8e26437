"""Bounds what a compressed record batch may become: brokers limit its size as it is on the wire, and 1 MiB of zstd may
stand for 32 GiB.

``bounded`` is put between a fetch and the client library's own decoding, which decompresses a batch as a whole.
"""

import logging
import struct
from collections.abc import Callable
from typing import Any

import cramjam
from kafka.record.util import calc_crc32c, encode_varint

_log = logging.getLogger(__name__)

# Of one batch, and of all batches of a partition that are decoded at a time. Producers fill batches up to the brokers'
# 1 MiB as compressed; chat logs shrink to a fifth, the most repetitive JSON to a fiftieth.
MAX_BYTES = 64 * 1024 * 1024

# The record batch, version 2 of the format and the only one that brokers write since Kafka 4: base offset, length, …,
# version at 16, CRC at 17 (of all after it), attributes at 21, last offset delta at 23, …, number of records at 57,
# records at 61.
_LENGTH, _VERSION, _CRC, _ATTRIBUTES, _LAST_DELTA, _COUNT, _RECORDS = 8, 16, 17, 21, 23, 57, 61
_LOG_OVERHEAD = 12
_CODEC_MASK, _SNAPPY = 0x07, 2
_XERIAL = b"\x82SNAPPY\x00"


def bounded(records: Any, max_bytes: int = MAX_BYTES) -> Any:
    """The record batches of a fetch, without what would decompress to more than ``max_bytes``.

    A batch that alone exceeds it (or is damaged) becomes one record without key and value, which readers reject like
    any other. Batches that exceed it together are cut off behind the last that fits: they are fetched again.
    """
    view = memoryview(records)
    parts: list[bytes | memoryview] = []
    position = total = begin = 0
    while position + _RECORDS <= len(view):
        end = position + _LOG_OVERHEAD + struct.unpack_from(">i", view, position + _LENGTH)[0]
        if end > len(view) or end < position + _RECORDS or view[position + _VERSION] != 2:
            break
        batch = view[position:end]
        size = _decompressed_size(batch, max_bytes)
        if size is None:
            offset = struct.unpack_from(">q", batch)[0]
            _log.warning("record batch too large, read as one empty record: offset=%d max_bytes=%d", offset, max_bytes)
            parts += [view[begin:position], _without_content(batch)]
            begin = end
            size = 0
        total += size
        if total > max_bytes:
            return b"".join([*parts, view[begin:position]])
        position = end
    return b"".join([*parts, view[begin:]]) if parts else records


def _decompressed_size(batch: memoryview, limit: int) -> int | None:
    """The size of a batch's records; ``None`` above ``limit``, and if they cannot be decompressed."""
    codec = struct.unpack_from(">h", batch, _ATTRIBUTES)[0] & _CODEC_MASK
    content = batch[_RECORDS:]
    if codec == 0:
        return len(content)
    try:
        if codec == _SNAPPY:
            size = _snappy_size(content)
            return size if size <= limit else None
        return _measured(_DECOMPRESS[codec], content, limit)
    except (KeyError, ValueError, struct.error, cramjam.DecompressionError):
        return None


def _measured(decompress_into: Callable[..., int], content: memoryview, limit: int) -> int:
    compressed = bytes(content)
    # By steps: to clear a buffer of the whole limit takes longer than to decompress most batches.
    size = min(16 * len(compressed) + 1024, limit)
    while True:
        try:
            return decompress_into(compressed, bytearray(size))
        except cramjam.DecompressionError:
            if size == limit:
                raise
            size = min(4 * size, limit)


def _snappy_size(content: memoryview) -> int:
    """Snappy tells its size beforehand; the framing of Java clients consists of blocks."""
    if bytes(content[: len(_XERIAL)]) != _XERIAL:
        return int(cramjam.snappy.decompress_raw_len(bytes(content)))
    total, position = 0, 16
    while position < len(content):
        length = struct.unpack_from(">i", content, position)[0]
        if length < 0:
            msg = f"block of {length} bytes"
            raise ValueError(msg)
        position += 4
        total += int(cramjam.snappy.decompress_raw_len(bytes(content[position : position + length])))
        position += length
    return total


_DECOMPRESS: dict[int, Callable[..., int]] = {
    1: cramjam.gzip.decompress_into,
    3: cramjam.lz4.decompress_into,
    4: cramjam.zstd.decompress_into,
}


def _without_content(batch: memoryview) -> bytes:
    """The batch with one record instead of its own, at the last offset, for which a recovery may wait."""
    new, record = bytearray(batch[:_RECORDS]), bytearray()
    # No attributes, the batch's first time; then neither key nor value (-1), and no headers.
    record += bytes(2)
    encode_varint(struct.unpack_from(">i", new, _LAST_DELTA)[0], record.append)
    record += bytes([1, 1, 0])
    encode_varint(len(record), new.append)
    new += record
    attributes = struct.unpack_from(">h", new, _ATTRIBUTES)[0] & ~_CODEC_MASK
    struct.pack_into(">h", new, _ATTRIBUTES, attributes)
    struct.pack_into(">i", new, _COUNT, 1)
    struct.pack_into(">i", new, _LENGTH, len(new) - _LOG_OVERHEAD)
    struct.pack_into(">I", new, _CRC, calc_crc32c(bytes(new[_ATTRIBUTES:])))
    return bytes(new)


def bound_decompression(fetcher: Any) -> None:
    """Have a client library's fetcher, kafka-python's or aiokafka's, decode only what is ``bounded``."""
    decode = fetcher.MemoryRecords
    if not hasattr(decode, "bounded_by_foldtune"):

        def decode_bounded(records: Any) -> Any:
            return decode(bounded(records))

        decode_bounded.bounded_by_foldtune = True  # type: ignore[attr-defined]
        fetcher.MemoryRecords = decode_bounded
