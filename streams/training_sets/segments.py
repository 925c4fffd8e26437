"""Immutable segments: the form in which the rolling training sets are kept.

A segment holds records of one folder and one topic between two offsets, and its key names its whole content, down to a
digest. It is never read and put again, so a replay cut at other borders, or the late write of a worker that lost its
partition, adds an overlapping copy and overwrites nothing; reading keeps one record for each place in the input. What
a key says beside that (counts, times) follows from the content: an index over segments is rebuilt from keys alone.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec
from msgspec import Struct

from foldtune.topics import Topic
from streams.training_sets import state_events
from streams.training_sets.decoding import Record
from streams.training_sets.state_events import ChatLog

# What the key of every segment starts with.
SEGMENTS = b"s|"
# One value must fit into a message of a broker with default settings (1 MiB), and an event alone may have half of that.
_MAX_BYTES = 384 * 1024


class Segment(Struct, frozen=True, gc=False, order=True):
    """What the key of a segment says. Sorted by folder, topic and first offset."""

    folder_id: str
    topic_label: str
    first: int
    last: int
    records: int
    # Logs that carry a citation or a verdict: what the retraining policy counts.
    labelled: int
    oldest_ms: int
    newest_ms: int
    size: int
    digest: str

    @property
    def topic(self) -> Topic:
        """The data topic that the records came by."""
        return _TOPICS[self.topic_label]

    @property
    def key(self) -> bytes:
        """The key in the table."""
        counts = f"{self.records}|{self.labelled}|{self.oldest_ms}|{self.newest_ms}|{self.size}|{self.digest}"
        place = f"{self.topic_label}|{self.first:016d}-{self.last:016d}"
        return folder_prefix(self.folder_id) + f"{place}|{counts}|{json.dumps(self.folder_id)}".encode()

    @classmethod
    def of_key(cls, key: bytes) -> "Segment":
        """The inverse of ``key``."""
        _, _, topic, offsets, records, labelled, oldest, newest, size, digest, folder = key.decode().split("|", 10)
        first, last = offsets.split("-")
        return cls(
            folder_id=json.loads(folder),
            topic_label=topic,
            first=int(first),
            last=int(last),
            records=int(records),
            labelled=int(labelled),
            oldest_ms=int(oldest),
            newest_ms=int(newest),
            size=int(size),
            digest=digest,
        )


def folder_prefix(folder_id: str) -> bytes:
    """What all keys of a folder start with."""
    return SEGMENTS + hashlib.sha256(folder_id.encode()).hexdigest()[:16].encode() + b"|"


def pack(topic: Topic, records: Iterable[Record]) -> Iterator[tuple[Segment, bytes]]:
    """Segments of the records of one topic, which are in the order of their offsets: one or more for each folder."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[state_events.folder_of(record.event)].append(record)
    for folder_id, group in groups.items():
        contents = [_content(record) for record in group]
        for start, end in _cuts(contents):
            yield _segment(folder_id, topic, group[start:end], contents[start:end])


def joined(parts: Iterable[tuple[Segment, bytes]]) -> Iterator[tuple[Segment, bytes]]:
    """Segments of one folder and topic as fewer ones, without reading them; they are in order and do not overlap."""
    group: list[tuple[Segment, bytes]] = []
    size = 0
    for part in parts:
        if size + part[0].size > _MAX_BYTES and group:
            yield _joined(group)
            group, size = [], 0
        group.append(part)
        size += part[0].size
    if group:
        yield _joined(group)


def _joined(group: list[tuple[Segment, bytes]]) -> tuple[Segment, bytes]:
    segments = [segment for segment, _ in group]
    # The inner parts of JSON arrays.
    content = b"[" + b",".join([content[1:-1] for _, content in group]) + b"]"
    segment = Segment(
        folder_id=segments[0].folder_id,
        topic_label=segments[0].topic_label,
        first=segments[0].first,
        last=segments[-1].last,
        records=sum([segment.records for segment in segments]),
        labelled=sum([segment.labelled for segment in segments]),
        oldest_ms=min([segment.oldest_ms for segment in segments]),
        newest_ms=max([segment.newest_ms for segment in segments]),
        size=len(content),
        digest=_digest(content),
    )
    return segment, content


def unpack(content: bytes) -> list[Record]:
    """The records of a segment."""
    return _DECODER.decode(content)


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return int(moment.timestamp() * 1000)


def _content(record: Record) -> bytes:
    if isinstance(record.event, ChatLog):
        # The answer is not needed to train a retriever, so its words are not kept.
        record.event.answer = None
    return state_events.encode(record)


def _segment(folder_id: str, topic: Topic, group: list[Record], contents: list[bytes]) -> tuple[Segment, bytes]:
    content = b"[" + b",".join(contents) + b"]"
    times = [record.event.occurred_at for record in group]
    segment = Segment(
        folder_id=folder_id,
        topic_label=topic.label,
        first=group[0].offset,
        last=group[-1].offset,
        records=len(group),
        labelled=sum([state_events.is_labelled(record.event) for record in group]),
        oldest_ms=milliseconds(min(times)),
        newest_ms=milliseconds(max(times)),
        size=len(content),
        digest=_digest(content),
    )
    return segment, content


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _cuts(contents: list[bytes]) -> Iterator[tuple[int, int]]:
    # By the size of what is kept, which may be far from that of what came: so segments are as wide as they can be.
    start = size = 0
    for index, content in enumerate(contents):
        if size + len(content) > _MAX_BYTES and index > start:
            yield start, index
            start, size = index, 0
        size += len(content)
    yield start, len(contents)


_DECODER = msgspec.json.Decoder(list[Record])
_TOPICS = {topic.label: topic for topic in Topic}
