"""Reads the dead letters, and publishes them again where they came from.

A replay leaves a receipt in the letter's own partition of ``dead-letters``: no value, and in its headers which letter
it was and where the bytes landed. A later letter that comes from there is the same bytes, failed again.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from foldtune.bounds import written_at
from foldtune.dead_letters import ERROR_HEADER, OFFSET_HEADER, PARTITION_HEADER, TOPIC_HEADER
from foldtune.kafka import Publisher, consumer
from foldtune.settings import KafkaSettings
from foldtune.topic_reader import read
from foldtune.topics import DATA_TOPICS, Topic

# On a replayed event and on its receipt: the id of the letter.
LETTER_HEADER = "foldtune-letter"
# On a replayed event: how often its bytes have been replayed, this time included.
REPLAYS_HEADER = "foldtune-replays"

# Headers are whoever's wrote them: nothing is published anywhere but where events from outside go.
INPUTS = (*DATA_TOPICS, Topic.FINE_TUNE_REQUESTS)
_KEYED_BY_FOLDER = (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK)
# Replayed at once; values of up to 1 MiB wait in memory.
_AT_ONCE = 50


class Place(NamedTuple):
    """One record's place on the brokers."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Letter:
    """What is told of a dead letter, without its bytes."""

    partition: int
    offset: int
    at: datetime
    error: str
    # Where it came from, if its headers say so.
    origin: Place | None
    key: bytes | None
    # Bytes.
    size: int
    # What the event itself says, if it can be read.
    folder_id: str | None
    # How often these bytes have come here, this time included.
    failures: int = 1
    replayed: bool = False

    @property
    def id(self) -> str:
        """Names the letter among all."""
        return f"{self.partition}:{self.offset}"


Wanted = Callable[[Letter, bytes], bool]


def read_letters(settings: KafkaSettings, wanted: Wanted = lambda _letter, _value: True) -> list[Letter]:
    """The dead letters, oldest first, for which ``wanted(letter, bytes)`` holds; only it sees their bytes.

    Raises:
        TopicMissingError: there is no such topic yet.
    """
    found: list[Letter] = []
    origins: dict[str, Place | None] = {}
    landed: dict[Place | None, str] = {}
    for record in read(settings, Topic.DEAD_LETTERS):
        headers = headers_of(record)
        if LETTER_HEADER in headers:
            landed[_origin(headers)] = headers[LETTER_HEADER]
            continue
        letter = _letter(record, headers)
        origins[letter.id] = letter.origin
        if wanted(letter, record.value or b""):
            found.append(letter)
    landed.pop(None, None)
    replayed = set(landed.values())
    found.sort(key=lambda letter: (letter.at, letter.partition, letter.offset))
    return [
        replace(letter, failures=1 + _replays(letter.id, origins, landed), replayed=letter.id in replayed)
        for letter in found
    ]


def records_of(settings: KafkaSettings, ids: Collection[str]) -> Iterator[Any]:
    """The ``ConsumerRecord`` of each letter that is named, with its bytes."""
    for record in read(settings, Topic.DEAD_LETTERS):
        if f"{record.partition}:{record.offset}" in ids and LETTER_HEADER not in headers_of(record):
            yield record


def headers_of(record: Any) -> dict[str, str]:
    """A record's headers as text; bytes that are none are escaped."""
    return {name: (value or b"").decode(errors="backslashreplace") for name, value in record.headers}


def input_partitions(settings: KafkaSettings) -> dict[str, int]:
    """How many partitions each of foldtune's inputs has, by its name on the brokers."""
    names = [topic.named(settings.topic_prefix) for topic in INPUTS]
    with consumer(settings) as client:
        return {name: len(client.partitions_for_topic(name) or ()) for name in names}


def refusal(letter: Letter, settings: KafkaSettings, partitions: Mapping[str, int]) -> str | None:
    """Why a letter cannot be replayed, or ``None`` if it can; ``partitions`` as of ``input_partitions``."""
    origin = letter.origin
    if origin is None:
        return "its headers do not say where it came from"
    if origin.topic not in partitions:
        return f"it came from {origin.topic!r}, which is none of foldtune's inputs"
    if origin.partition >= (count := partitions[origin.topic]):
        return f"it came from partition {origin.partition} of {origin.topic!r}, which has {count}"
    by_folder = {topic.named(settings.topic_prefix) for topic in _KEYED_BY_FOLDER}
    named, key = letter.folder_id, letter.key
    if origin.topic in by_folder and named is not None and key is not None and named.encode() != key:
        # In an envelope it was refused for this; alone it would be taken, and put the folder on a second partition.
        return f"its folder_id {named!r} is not its key {key.decode(errors='backslashreplace')!r}: publish it anew"
    return None


def replay(settings: KafkaSettings, letters: Collection[Letter]) -> int:
    """Publish letters again that ``refusal`` has nothing against; returns how many, all acknowledged by the brokers.

    Each goes to the partition that it was in, so events of one key keep their order.

    Raises:
        PublishError: the brokers did not take one; those before it were replayed, and may be replayed again.
    """
    chosen = {letter.id: letter for letter in letters}
    topics = {topic.named(settings.topic_prefix): topic for topic in INPUTS}
    records = records_of(settings, chosen)
    count = 0
    with Publisher(settings) as publisher:
        while batch := list(islice(records, _AT_ONCE)):
            sent = []
            for record in batch:
                letter = chosen[f"{record.partition}:{record.offset}"]
                if letter.origin is None:
                    continue
                headers = [(LETTER_HEADER, letter.id.encode()), (REPLAYS_HEADER, str(letter.failures).encode())]
                topic, partition = topics[letter.origin.topic], letter.origin.partition
                future = publisher.send_raw(topic, record.value, key=record.key, partition=partition, headers=headers)
                sent.append((letter, future))
            publisher.flush()
            for letter, future in sent:
                _send_receipt(publisher, letter, future.get())
            publisher.flush()
            count += len(sent)
    return count


def _send_receipt(publisher: Publisher, letter: Letter, landed: Any) -> None:
    headers = [
        (LETTER_HEADER, letter.id.encode()),
        (TOPIC_HEADER, landed.topic.encode()),
        (PARTITION_HEADER, str(landed.partition).encode()),
        (OFFSET_HEADER, str(landed.offset).encode()),
    ]
    publisher.send_raw(Topic.DEAD_LETTERS, None, key=letter.key, partition=letter.partition, headers=headers)


def _letter(record: Any, headers: dict[str, str]) -> Letter:
    value = record.value or b""
    return Letter(
        partition=record.partition,
        offset=record.offset,
        at=written_at(record.timestamp),
        error=headers.get(ERROR_HEADER, ""),
        origin=_origin(headers),
        key=record.key,
        size=len(value),
        folder_id=_folder_of(value),
    )


def _origin(headers: dict[str, str]) -> Place | None:
    topic = headers.get(TOPIC_HEADER, "")
    numbers = [headers.get(name, "") for name in (PARTITION_HEADER, OFFSET_HEADER)]
    if not topic or not all(re.fullmatch(r"[0-9]{1,19}", number) for number in numbers):
        return None
    return Place(topic, int(numbers[0]), int(numbers[1]))


class _Foldered(msgspec.Struct):
    folder_id: str


def _folder_of(value: bytes) -> str | None:
    try:
        return msgspec.json.decode(value, type=_Foldered).folder_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _replays(letter_id: str, origins: Mapping[str, Place | None], landed: Mapping[Place | None, str]) -> int:
    # Bounded, since receipts that somebody made up may lead in a circle.
    count = 0
    while count < len(landed) and (earlier := landed.get(origins.get(letter_id))) is not None:
        letter_id = earlier
        count += 1
    return count
