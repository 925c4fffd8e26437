"""Immutable segments: the form in which the rolling training sets are stored.

A segment holds records of one folder and one topic from a range of offsets, and its key identifies its whole content,
down to a digest. Segments are never modified, so a replay cut at other block borders, or a zombie's late write
(``streams.partitions``), adds an overlapping copy and overwrites nothing; readers deduplicate by offset and position.
The rest of the key (counts, times) follows from the content: an index of segments is rebuilt from keys alone.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct

from foldtune.bounds import epoch_ms
from foldtune.topics import Topic
from streams.training_sets import state_events
from streams.training_sets.state_events import ChatLog, StateRecord

# The prefix of every segment's key.
SEGMENT_PREFIX = b"s|"
# A value must fit into a message of a broker with default settings (1 MiB), and a single event may take half of that.
_MAX_BYTES = 384 * 1024


class Segment(Struct, frozen=True, gc=False, order=True):
    """A segment's key, parsed. Sorts by folder, topic and first offset."""

    folder_id: str
    topic_label: str
    first_offset: int
    last_offset: int
    record_count: int
    # Those that ``is_labelled``, which the retraining policy counts; version 0.1 counted logs only.
    labelled_count: int
    oldest_ms: int
    newest_ms: int
    # Bytes of the content.
    size: int
    digest: str

    @property
    def topic(self) -> Topic:
        """The data topic of the records."""
        return _TOPICS[self.topic_label]

    @property
    def key(self) -> bytes:
        """The key in the table."""
        offsets = f"{self.first_offset:016d}-{self.last_offset:016d}"
        counts = f"{self.record_count}|{self.labelled_count}|{self.oldest_ms}|{self.newest_ms}|{self.size}"
        suffix = f"{self.topic_label}|{offsets}|{counts}|{self.digest}|{json.dumps(self.folder_id)}"
        return folder_prefix(self.folder_id) + suffix.encode()

    @classmethod
    def from_key(cls, key: bytes) -> "Segment":
        """The inverse of ``key``."""
        _, _, topic, offsets, records, labelled, oldest, newest, size, digest, folder = key.decode().split("|", 10)
        first, last = offsets.split("-")
        return cls(
            folder_id=json.loads(folder),
            topic_label=topic,
            first_offset=int(first),
            last_offset=int(last),
            record_count=int(records),
            labelled_count=int(labelled),
            oldest_ms=int(oldest),
            newest_ms=int(newest),
            size=int(size),
            digest=digest,
        )


def folder_prefix(folder_id: str) -> bytes:
    """The prefix of the keys of a folder's segments; fixed length, whatever the id."""
    return SEGMENT_PREFIX + hashlib.sha256(folder_id.encode()).hexdigest()[:16].encode() + b"|"


def pack(topic: Topic, records: Iterable[StateRecord]) -> Iterator[tuple[Segment, bytes]]:
    """Encode records of one topic, in offset order, as segments with their content: one or more for each folder."""
    by_folder: dict[str, list[StateRecord]] = defaultdict(list)
    for record in records:
        event = record.event
        if isinstance(event, ChatLog):
            # Training a retriever does not need the answer, so its text is not stored.
            event.answer = None
        by_folder[state_events.folder_of(event)].append(record)
    for folder_id, group in by_folder.items():
        for part, content in _encode(group):
            yield _build_segment(folder_id, topic, part, content), content


def unpack(content: bytes) -> list[StateRecord]:
    """The records of a segment."""
    return _DECODER.decode(content)


def concatenate(parts: Iterable[tuple[Segment, bytes]]) -> Iterator[tuple[Segment, bytes]]:
    """Merge segments of one folder and topic into fewer, without decoding them.

    They must be in offset order and must not overlap.
    """
    group: list[tuple[Segment, bytes]] = []
    size = 0
    for part in parts:
        if size + part[0].size > _MAX_BYTES and group:
            yield _concatenate_group(group)
            group, size = [], 0
        group.append(part)
        size += part[0].size
    if group:
        yield _concatenate_group(group)


def _concatenate_group(group: list[tuple[Segment, bytes]]) -> tuple[Segment, bytes]:
    segments = [segment for segment, _ in group]
    # Each content is a JSON array: its brackets go.
    content = b"[" + b",".join([content[1:-1] for _, content in group]) + b"]"
    segment = Segment(
        folder_id=segments[0].folder_id,
        topic_label=segments[0].topic_label,
        first_offset=segments[0].first_offset,
        last_offset=segments[-1].last_offset,
        record_count=sum([segment.record_count for segment in segments]),
        labelled_count=sum([segment.labelled_count for segment in segments]),
        oldest_ms=min([segment.oldest_ms for segment in segments]),
        newest_ms=max([segment.newest_ms for segment in segments]),
        size=len(content),
        digest=_digest(content),
    )
    return segment, content


def _encode(records: list[StateRecord]) -> Iterator[tuple[list[StateRecord], bytes]]:
    """Records as the contents of segments, of at most ``_MAX_BYTES`` or one record each.

    Measured as encoded, not as received, which may differ much: so segments are as large as they can be.
    """
    content = state_events.encode(records)
    # Almost always: one call for all is faster than one for each.
    if len(content) <= _MAX_BYTES:
        yield records, content
        return
    encoded = list(map(state_events.encode, records))
    for start, end in _split_by_size(encoded):
        yield records[start:end], b"[" + b",".join(encoded[start:end]) + b"]"


def _build_segment(folder_id: str, topic: Topic, records: list[StateRecord], content: bytes) -> Segment:
    times = [record.event.occurred_at for record in records]
    return Segment(
        folder_id=folder_id,
        topic_label=topic.label,
        first_offset=records[0].offset,
        last_offset=records[-1].offset,
        record_count=len(records),
        labelled_count=sum([state_events.is_labelled(record.event) for record in records]),
        oldest_ms=epoch_ms(min(times)),
        newest_ms=epoch_ms(max(times)),
        size=len(content),
        digest=_digest(content),
    )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _split_by_size(encoded: list[bytes]) -> Iterator[tuple[int, int]]:
    """Index ranges of at most ``_MAX_BYTES``, or of one record."""
    start = size = 0
    for index, content in enumerate(encoded):
        if size + len(content) > _MAX_BYTES and index > start:
            yield start, index
            start, size = index, 0
        size += len(content)
    yield start, len(encoded)


_DECODER = msgspec.json.Decoder(list[StateRecord])
_TOPICS = {topic.label: topic for topic in Topic}
