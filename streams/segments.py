"""Immutable segments: the form in which the rolling training sets are kept.

A segment holds the records of one folder and one topic between two offsets, and its key names all of that. It is never
read and put again, so a replay cut at other borders, or the late write of a worker that lost its partition, adds an
overlapping copy and overwrites nothing; reading keeps one record per source. What a key says beside the offsets
(counts, times) follows from the content: an index over segments is rebuilt from keys alone.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field, TypeAdapter

from streams.events import ChatLog
from streams.records import DataEvent, Record, Source, folder_of
from streams.topics import Topic

# What the key of every segment starts with.
SEGMENTS = b"s|"
_EVENT: TypeAdapter[DataEvent] = TypeAdapter(Annotated[DataEvent, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Segment:
    """What the key of a segment says."""

    folder_id: str
    topic: Topic
    first: int
    last: int
    records: int
    # Logs that carry a citation or a verdict: what the retraining policy counts.
    labelled: int
    oldest_ms: int
    newest_ms: int

    @property
    def key(self) -> bytes:
        """The key in the table: sorted by folder, topic and first offset."""
        numbers = f"{self.first:016d}-{self.last:016d}|{self.records}|{self.labelled}|{self.oldest_ms}|{self.newest_ms}"
        return folder_prefix(self.folder_id) + f"{self.topic.label}|{numbers}|{json.dumps(self.folder_id)}".encode()

    @classmethod
    def of_key(cls, key: bytes) -> "Segment":
        """The inverse of ``key``."""
        _, _, topic, offsets, records, labelled, oldest, newest, folder = key.decode().split("|", 8)
        first, last = offsets.split("-")
        return cls(
            folder_id=json.loads(folder),
            topic=_TOPICS[topic],
            first=int(first),
            last=int(last),
            records=int(records),
            labelled=int(labelled),
            oldest_ms=int(oldest),
            newest_ms=int(newest),
        )


def folder_prefix(folder_id: str) -> bytes:
    """What all keys of a folder start with."""
    return SEGMENTS + hashlib.sha256(folder_id.encode()).hexdigest()[:16].encode() + b"|"


def pack(records: Iterable[Record]) -> Iterator[tuple[Segment, bytes]]:
    """The segments of one block, one for each folder and topic, with their content as JSON lines."""
    groups: dict[tuple[str, Topic], list[Record]] = defaultdict(list)
    for record in records:
        groups[folder_of(record.event), record.source.topic].append(record)
    for (folder_id, topic), group in groups.items():
        times = [milliseconds(record.event.occurred_at) for record in group]
        segment = Segment(
            folder_id=folder_id,
            topic=topic,
            first=group[0].source.offset,
            last=group[-1].source.offset,
            records=len(group),
            labelled=sum(is_labelled(record.event) for record in group),
            oldest_ms=min(times),
            newest_ms=max(times),
        )
        yield segment, b"\n".join(_line(record) for record in group)


def unpack(segment: Segment, content: bytes) -> Iterator[Record]:
    """The records of a segment."""
    for line in content.split(b"\n"):
        place, _, event = line.partition(b" ")
        offset, _, position = place.partition(b".")
        yield Record(Source(segment.topic, int(offset), int(position)), _EVENT.validate_json(event))


def is_labelled(event: DataEvent) -> bool:
    """Whether an event is a log that says which passage was right, or wrong."""
    return isinstance(event, ChatLog) and bool(event.cited_document_ids or event.feedback)


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return int(moment.timestamp() * 1000)


def _line(record: Record) -> bytes:
    # The answer is not needed to train a retriever, so its words are not kept.
    event = record.event.model_dump_json(exclude={"answer"}, exclude_none=True)
    return f"{record.source.offset}.{record.source.position} {event}".encode()


_TOPICS = {topic.label: topic for topic in Topic}
