"""Reads the dead letters and replays them: publishes their bytes again where they came from, or where they belong.

A replay leaves a receipt in the dead letter's own partition of ``dead-letters``: a record without key and value, whose
headers name the dead letter and the topic, partition and offset of the replayed record. A later dead letter that comes
from there is the same bytes, failed again.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from foldtune.bounds import written_at
from foldtune.dead_letters import (
    ERROR_HEADER,
    LETTER_HEADER,
    OFFSET_HEADER,
    PARTITION_HEADER,
    REPLAY_OF_HEADER,
    TOPIC_HEADER,
)
from foldtune.kafka import Publisher, consumer, partition_of
from foldtune.settings import KafkaSettings
from foldtune.topic_reader import read, read_at
from foldtune.topics import DATA_TOPICS, KEYED_BY_FOLDER, Topic

# On a replayed record: how often its bytes have been replayed, this time included.
REPLAYS_HEADER = "foldtune-replays"
# On a dead letter that was published again: the id of the one that it is a copy of.
COPY_HEADER = "foldtune-copy-of"

# Anybody can write headers, so records are replayed only to topics that take events from outside.
INPUTS = (*DATA_TOPICS, Topic.FINE_TUNE_REQUESTS)
# Dead letters replayed between two flushes; values of up to 1 MiB are in memory meanwhile.
_BATCH_SIZE = 50


class RecordId(NamedTuple):
    """Identifies a record; the topic with its prefix."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was rejected, without its value."""

    partition: int
    offset: int
    at: datetime
    error: str
    # Of the rejected record; ``None`` if the headers do not say.
    origin: RecordId | None
    key: bytes | None
    # Of the value, in bytes.
    size: int
    # From the value; ``None`` if it cannot be decoded or has none.
    folder_id: str | None
    # How often these bytes were rejected, this time included.
    failures: int = 1
    replayed: bool = False
    # The id of the dead letter that it is a copy of (``dead_letter_erasure``).
    copy_of: str | None = None

    @property
    def id(self) -> str:
        """Partition and offset in ``dead-letters``, as ``0:12``."""
        return f"{self.partition}:{self.offset}"


Filter = Callable[[DeadLetter, bytes], bool]


class DeadLetterIndex:
    """The dead letters without their values, as far as ``dead-letters`` has been added record by record."""

    def __init__(self) -> None:
        self._letters: dict[str, DeadLetter] = {}
        # By the replayed record: the id of its dead letter.
        self._receipts: dict[RecordId, str] = {}
        # By the id of a dead letter: that of the earlier one. Letters of release 0.1 do not say it.
        self._replays: dict[str, str] = {}
        # The other way round. In a topic that was made anew two replayed records have had one offset.
        self._replayed: dict[str, RecordId] = {}

    def add(self, record: Any) -> DeadLetter | None:
        """Add a record; the dead letter that it is, ``None`` for the receipt of a replay."""
        headers = decode_headers(record)
        if LETTER_HEADER in headers:
            if replayed := _origin(headers):
                self._receipts[replayed] = headers[LETTER_HEADER]
                self._replayed[headers[LETTER_HEADER]] = replayed
            return None
        dead_letter = _dead_letter(record, headers)
        if REPLAY_OF_HEADER in headers:
            self._replays[dead_letter.id] = headers[REPLAY_OF_HEADER]
        self._letters[dead_letter.id] = dead_letter
        return dead_letter

    def get(self, letter_id: str) -> DeadLetter | None:
        """A dead letter by its id, with what the records added since say of it."""
        if (dead_letter := self._letters.get(letter_id)) is None:
            return None
        return replace(dead_letter, failures=1 + self._replay_count(letter_id), replayed=letter_id in self._replayed)

    def discard(self, letter_id: str) -> DeadLetter | None:
        """Forget a dead letter; what it was."""
        self._replays.pop(letter_id, None)
        replayed = self._replayed.pop(letter_id, None)
        if replayed and self._receipts.get(replayed) == letter_id:
            del self._receipts[replayed]
        return self._letters.pop(letter_id, None)

    def _earlier(self, letter_id: str) -> str | None:
        # A topic that was made anew has other offsets than the state, and than before. Headers may be forged: a letter
        # that was never replayed is not believed.
        if (replayed := self._replays.get(letter_id)) in self._replayed:
            return replayed
        letter = self._letters.get(letter_id)
        return self._receipts.get(letter.origin) if letter and letter.origin else None

    def _replay_count(self, letter_id: str) -> int:
        # Bounded, since forged receipts can form a cycle.
        count, bound = 0, len(self._receipts) + len(self._replays)
        earlier = self._earlier(letter_id)
        while earlier is not None and count < bound:
            count, earlier = count + 1, self._earlier(earlier)
        return count


def read_dead_letters(settings: KafkaSettings, matches: Filter = lambda _dead_letter, _value: True) -> list[DeadLetter]:
    """The dead letters for which ``matches(dead_letter, value)`` is true, oldest first; values are not kept.

    Raises:
        TopicMissingError: ``dead-letters`` does not exist.
    """
    index, matching = DeadLetterIndex(), list[DeadLetter]()
    for record in read(settings, Topic.DEAD_LETTERS):
        dead_letter = index.add(record)
        if dead_letter and matches(dead_letter, record.value or b""):
            matching.append(dead_letter)
    matching.sort(key=lambda dead_letter: (dead_letter.at, dead_letter.partition, dead_letter.offset))
    return [found for dead_letter in matching if (found := index.get(dead_letter.id))]


def read_records(settings: KafkaSettings, ids: Collection[str]) -> Iterator[Any]:
    """The ``ConsumerRecord`` of each dead letter in ``ids``, with its value."""
    places = [(int(partition), int(offset)) for partition, _, offset in (letter_id.partition(":") for letter_id in ids)]
    for record in read_at(settings, Topic.DEAD_LETTERS, places):
        if LETTER_HEADER not in decode_headers(record):
            yield record


def decode_headers(record: Any) -> dict[str, str]:
    """A record's headers as text; bytes that are not UTF-8 are escaped."""
    return {name: (value or b"").decode(errors="backslashreplace") for name, value in record.headers}


def input_partitions(settings: KafkaSettings) -> dict[str, int]:
    """The number of partitions of each input topic, by its name with prefix."""
    names = [topic.named(settings.topic_prefix) for topic in INPUTS]
    with consumer(settings) as client:
        return {name: len(client.partitions_for_topic(name) or ()) for name in names}


def refusal_reason(dead_letter: DeadLetter, settings: KafkaSettings, partitions: Mapping[str, int]) -> str | None:
    """Why a dead letter cannot be replayed, ``None`` if it can; ``partitions`` are those of ``input_partitions``."""
    origin = dead_letter.origin
    if origin is None:
        return "its headers name no origin"
    if origin.topic not in partitions:
        return f"its origin {origin.topic!r} is none of foldtune's inputs"
    if origin.partition >= (count := partitions[origin.topic]):
        return f"its origin is partition {origin.partition} of {origin.topic!r}, which has {count} partitions"
    folder_id, key = dead_letter.folder_id, dead_letter.key
    if settings.partitioner != "murmur2" and folder_id and _is_by_folder(dead_letter, settings):
        if key is None or folder_id.encode() == key:
            return None
        # It was rejected for this as a part of an envelope. Alone it would be valid, and put the folder's logs on a
        # second partition.
        key_text = key.decode(errors="backslashreplace")
        return f"its folder_id {folder_id!r} differs from its key {key_text!r}: publish it as a new event"
    return None


def destination(
    dead_letter: DeadLetter, settings: KafkaSettings, partitions: Mapping[str, int]
) -> tuple[str, int] | None:
    """Topic and partition to which a dead letter without a ``refusal_reason`` is replayed: where its folder lies.

    Without a folder, or where the producers' partitioner is not known, to where it came from.
    """
    if dead_letter.origin is None:
        return None
    topic, partition, _ = dead_letter.origin
    if settings.partitioner == "murmur2" and dead_letter.folder_id and _is_by_folder(dead_letter, settings):
        partition = partition_of(dead_letter.folder_id, partitions[topic])
    return topic, partition


def _is_by_folder(dead_letter: DeadLetter, settings: KafkaSettings) -> bool:
    by_folder = {topic.named(settings.topic_prefix) for topic in KEYED_BY_FOLDER}
    return dead_letter.origin is not None and dead_letter.origin.topic in by_folder


def replay(settings: KafkaSettings, dead_letters: Collection[DeadLetter], partitions: Mapping[str, int]) -> int:
    """Publish dead letters without a ``refusal_reason`` again; returns how many, all acknowledged by the brokers.

    Each goes to its ``destination``, so events of one key keep their order.

    Raises:
        PublishError: a record was not acknowledged; those before it are replayed, and may be replayed again.
    """
    chosen = {dead_letter.id: dead_letter for dead_letter in dead_letters}
    topics = {topic.named(settings.topic_prefix): topic for topic in INPUTS}
    records = read_records(settings, chosen)
    count = 0
    with Publisher(settings) as publisher:
        while batch := list(islice(records, _BATCH_SIZE)):
            # A batch is replayed in two steps, so that a receipt implies a replay:
            # 1. publish the records, and wait for the brokers;
            # 2. publish the receipts with the records' offsets, and wait for the brokers.
            sent = []
            for record in batch:
                dead_letter = chosen[f"{record.partition}:{record.offset}"]
                if (target := destination(dead_letter, settings, partitions)) is None:
                    continue
                name, partition = target
                headers = [
                    (LETTER_HEADER, dead_letter.id.encode()),
                    (REPLAYS_HEADER, str(dead_letter.failures).encode()),
                ]
                future = publisher.send_raw(
                    topics[name], record.value, key=record.key, partition=partition, headers=headers
                )
                sent.append((dead_letter, future))
            publisher.flush()
            for dead_letter, future in sent:
                _send_receipt(publisher, dead_letter, future.get())
            publisher.flush()
            count += len(sent)
    return count


def _send_receipt(publisher: Publisher, dead_letter: DeadLetter, metadata: Any) -> None:
    headers = [
        (LETTER_HEADER, dead_letter.id.encode()),
        (TOPIC_HEADER, metadata.topic.encode()),
        (PARTITION_HEADER, str(metadata.partition).encode()),
        (OFFSET_HEADER, str(metadata.offset).encode()),
    ]
    # Without the letter's key, which may be a name: an erasure deletes letters, and would leave this behind.
    publisher.send_raw(Topic.DEAD_LETTERS, b"", key=None, partition=dead_letter.partition, headers=headers)


def _dead_letter(record: Any, headers: dict[str, str]) -> DeadLetter:
    value = record.value or b""
    return DeadLetter(
        partition=record.partition,
        offset=record.offset,
        at=written_at(record.timestamp) or datetime.max.replace(tzinfo=UTC),
        error=headers.get(ERROR_HEADER, ""),
        origin=_origin(headers),
        key=record.key,
        size=len(value),
        folder_id=_folder_id(value),
        copy_of=headers.get(COPY_HEADER),
    )


def _origin(headers: dict[str, str]) -> RecordId | None:
    topic = headers.get(TOPIC_HEADER, "")
    numbers = [headers.get(name, "") for name in (PARTITION_HEADER, OFFSET_HEADER)]
    if not topic or not all(re.fullmatch(r"[0-9]{1,19}", number) for number in numbers):
        return None
    return RecordId(topic, int(numbers[0]), int(numbers[1]))


class _FolderEvent(msgspec.Struct):
    folder_id: str


def _folder_id(value: bytes) -> str | None:
    try:
        return msgspec.json.decode(value, type=_FolderEvent).folder_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
