"""What faults take from the data topics, and the accounts of it that the workers must come to."""

import json
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from kafka import TopicPartition
from kafka.errors import KafkaError
from tenacity import retry, retry_if_exception_type, stop_after_delay

from foldtune.errors import NoBrokerError
from foldtune.kafka import consumer
from foldtune.settings import Settings
from foldtune.topic_admin import delete_records, inspect_topics
from foldtune.topics import DATA_TOPICS, Topic
from infra.local.server import LocalServer
from streams.partitions.positions import Position, find_position
from streams.training_sets.segments import SEGMENT_PREFIX, Segment, unpack
from streams.worker.app import changelogs

# The local broker stores once a second where its logs begin.
_CHECKPOINTED_SECONDS = 2.5


class Account(NamedTuple):
    """What is told of as lost, as a snapshot names it."""

    topic: str
    partition: int
    cause: str


class Known(NamedTuple):
    """Where a topic is continued; ``None`` if nothing of it was ever read."""

    position: Position | None
    # Offsets behind it that are stored already: the worker was killed before it stored the next offset.
    stored: frozenset[int]

    def has(self, offset: int) -> bool:
        """Whether the state has the record."""
        return self.position is not None and (offset < self.position.offset or offset in self.stored)


class Taken(NamedTuple):
    """A record that its topic no longer has."""

    topic: Topic
    partition: int
    value: bytes | None


class Losses:
    """Deletes records while no worker runs, and knows from the changelog which of them had been read."""

    def __init__(self, settings: Settings, brokers_folder: Path) -> None:
        self.settings = settings
        self._folder = brokers_folder
        # What the workers must have counted since they began under their app id.
        self.accounts: Counter[Account] = Counter()
        # The state has these, and not those.
        self.read: list[Taken] = []
        self.unread: list[Taken] = []

    @property
    def logs(self) -> set[str]:
        """The ids that records which nobody has read name as a log's."""
        found = set()
        for taken in self.unread:
            # Among them what is no log at all.
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                content = json.loads(taken.value or b"")
                found |= {log["log_id"] for log in content.get("logs", [content])}
        return found

    def forget(self) -> None:
        """Another app id begins with what the topics have now."""
        self.unread += self.read
        self.read.clear()
        self.accounts.clear()

    def expire(self, partition: TopicPartition, chance: random.Random, known: Known) -> bool:
        """Delete the oldest records, as retention does; returns whether some of them had not been read."""
        topic = self._topic(partition)
        first, end = self._range(partition)
        below = chance.choice((end, chance.randint(first, end)))
        self._take(topic, partition, 0, below, known)
        delete_records(self.settings.kafka, topic, {partition.partition: below})
        # Until a kill of the broker does not undo it.
        time.sleep(_CHECKPOINTED_SECONDS)
        position = known.position
        if position is None or position.offset >= below:
            return False
        # With what is stored behind the next offset: by that the workers count.
        self.accounts[Account(topic.label, partition.partition, "expired")] += below - position.offset
        return True

    def can_truncate(self, partition: TopicPartition) -> bool:
        """Whether the log has batches to cut off."""
        return len(self._batches(partition)) > 1

    def truncate(self, partition: TopicPartition, chance: random.Random, known: Known, broker: LocalServer) -> bool:
        """Cut the last batches off a log while its broker does not run, as an unclean election does.

        Returns whether the workers can notice: they had read more than there is now.
        """
        segment = self._segment(partition)
        size, end = chance.choice(self._batches(partition)[1:][-5:])
        self._take(self._topic(partition), partition, end, None, known)
        broker.kill()
        with segment.open("rb+") as log:
            log.truncate(size)
        # The broker makes them anew.
        for index in segment.parent.glob(f"{segment.stem}.*index"):
            index.unlink()
        broker.start()
        position = known.position
        if position is None or position.offset <= end:
            return False
        self.accounts[Account(self._topic(partition).label, partition.partition, "truncated")] += position.offset - end
        return True

    @retry(retry=retry_if_exception_type((KafkaError, NoBrokerError)), stop=stop_after_delay(120))
    def positions(self, app: Settings) -> dict[TopicPartition, Known]:
        """What has been read of each partition of the data topics, as the changelog has it."""
        (sets, *_), kafka = changelogs(app), self.settings.kafka
        found = {}
        with consumer(kafka) as client:
            # The workers create it, under a new app id not at once.
            begun = sets in inspect_topics(kafka, (), (sets,)).ids
            for partition in range(kafka.partitions):
                content = replay(client, TopicPartition(sets, partition)) if begun else {}
                table: Any = _Replayed(content)
                for topic in DATA_TOPICS:
                    position = find_position(table, topic, partition)
                    known = Known(position, _stored(content, topic, position) if position else frozenset())
                    found[TopicPartition(topic.named(kafka.topic_prefix), partition)] = known
        return found

    def _take(self, topic: Topic, partition: TopicPartition, first: int, below: int | None, known: Known) -> None:
        with consumer(self.settings.kafka) as client:
            for record in _records(client, partition):
                if first <= record.offset and (below is None or record.offset < below):
                    taken = Taken(topic, partition.partition, record.value)
                    (self.read if known.has(record.offset) else self.unread).append(taken)

    # A broker that was killed may take its time.
    @retry(retry=retry_if_exception_type((KafkaError, NoBrokerError)), stop=stop_after_delay(120))
    def _range(self, partition: TopicPartition) -> tuple[int, int]:
        """The first offset, and the end."""
        with consumer(self.settings.kafka) as client:
            return client.beginning_offsets([partition])[partition], client.end_offsets([partition])[partition]

    def _segment(self, partition: TopicPartition) -> Path:
        (folder,) = self._folder.rglob(f"{partition.topic}-{partition.partition}")
        return max(folder.glob("*.log"))

    def _batches(self, partition: TopicPartition) -> list[tuple[int, int]]:
        """Position in the file and first offset of each record batch that the topic has in its last segment."""
        first, _ = self._range(partition)
        return [(position, offset) for position, offset in _batches(self._segment(partition)) if offset >= first]

    def _topic(self, partition: TopicPartition) -> Topic:
        prefix = self.settings.kafka.topic_prefix
        return next(topic for topic in DATA_TOPICS if topic.named(prefix) == partition.topic)


def _stored(content: dict[bytes, bytes], topic: Topic, position: Position) -> frozenset[int]:
    segments = [(Segment.from_key(key), value) for key, value in content.items() if key.startswith(SEGMENT_PREFIX)]
    return frozenset(
        record.offset - position.history.shift
        for segment, value in segments
        if segment.topic is topic and segment.last_offset >= position.state_offset
        for record in unpack(value)
    )


class _Replayed:
    """The content of a changelog partition as far as ``find_position`` asks for it."""

    def __init__(self, content: dict[bytes, bytes]) -> None:
        self._content = content

    def get(self, _: int, key: bytes) -> bytes | None:
        return self._content.get(key)


def replay(client: Any, partition: TopicPartition) -> dict[bytes, bytes]:
    """The state that a changelog partition stands for."""
    state: dict[bytes, bytes] = {}
    for record in _records(client, partition):
        if record.value is None:
            state.pop(record.key, None)
        else:
            state[record.key] = record.value
    return state


def _records(client: Any, partition: TopicPartition) -> Iterator[Any]:
    client.assign([partition])
    client.seek_to_beginning(partition)
    end = client.end_offsets([partition])[partition]
    while client.position(partition) < end:
        for records in client.poll(timeout_ms=500, max_records=5000).values():
            yield from records


def _batches(segment: Path) -> Iterator[tuple[int, int]]:
    """Position in the file and first offset of each record batch."""
    content, position = segment.read_bytes(), 0
    while position + 12 <= len(content):
        offset, length = struct.unpack_from(">qi", content, position)
        if length <= 0 or position + 12 + length > len(content):
            return
        yield position, offset
        position += 12 + length
