"""Where a partition is continued: the next offset, the time that a record without a time of its own counts as, and what
the topic has lost.

What is made of a record must not depend on how the topic was cut into blocks, or on which worker read it when. So each
record is judged by its own timestamp. Where that cannot be meant (``foldtune.bounds.is_plausible``), the record counts
as written at the newest plausible time before it in its partition. That time is a part of the state: one value holds it
and the offset that it belongs to, so that a redelivery from there judges alike.

The state knows records by their offsets. A topic that was made anew, or has lost its end, gives its offsets once more:
there the state's offsets go on, and are the brokers' plus a *shift* (``streams.partitions.lost_records``).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import structlog
from msgspec import Struct

from foldtune.bounds import EARLIEST_MS, LATEST_MS, is_plausible
from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.changelog_table import Changes, Table

_log = structlog.get_logger()
# The offset, the newest timestamp, and the history.
_POSITION = re.compile(rb"(\d{1,18})(?: (\d{1,13})(?: (\{.*\}))?)?", re.DOTALL)


class Lost(NamedTuple):
    """How many records were lost for one cause, and when that was noticed last."""

    records: int = 0
    last_ms: int = 0


class History(Struct, frozen=True, omit_defaults=True):
    """What has become of a topic's partition since it was first read."""

    # The brokers' id of the topic; none where they, or who stored this, do not know it.
    topic_id: str = ""
    # What the state's offsets are above the brokers'.
    shift: int = 0
    # By cause.
    lost: dict[str, Lost] = {}


class Position(NamedTuple):
    """The next offset of a topic, and the newest plausible timestamp of the records before it (0: none)."""

    offset: int
    newest_ms: int
    history: History = History()

    @property
    def state_offset(self) -> int:
        """The offset by which the state knows the next record."""
        return self.offset + self.history.shift


def find_position(table: Table, topic: Topic, partition: int) -> Position | None:
    """The position of a topic, as the table has it; ``None`` if nothing of the topic was ever read."""
    # The second is of a time before topics had a history. Version 0.1.0 stored the offset alone.
    for key in (_position_key(topic), f"p|{topic.label}".encode(), offset_key(topic)):
        if not (value := table.get(partition, key)):
            continue
        try:
            if match := _POSITION.fullmatch(value):
                return Position(int(match[1]), int(match[2] or 0), _HISTORY.decode(match[3] or b"{}"))
        except msgspec.MsgspecError:
            pass
        # Written by somebody else. Records that are handled again change nothing.
        _log.error("stored offset not readable", topic=topic.label, partition=partition, key=key, value=value[:100])
    return None


def stored_position(table: Table, topic: Topic, partition: int) -> Position:
    """The position of a topic, as the table has it, or its beginning."""
    return find_position(table, topic, partition) or Position(0, 0)


def position_changes(topic: Topic, position: Position) -> Changes:
    """What stores a position; the offset also by itself, where version 0.1.0 looks for it after a rollback."""
    value = b"%d %d" % position[:2]
    if position.history != History():
        value += b" " + msgspec.json.encode(position.history)
    return {_position_key(topic): value, offset_key(topic): b"%d" % position.offset}


def newest_time(table: Table, partition: int) -> datetime:
    """The newest plausible time of the data topics' records that were handled; 1970 if there is none."""
    newest = max(stored_position(table, topic, partition).newest_ms for topic in DATA_TOPICS)
    return datetime.fromtimestamp(newest / 1000, UTC)


def offset_key(topic: Topic) -> bytes:
    """The key of a topic's next offset in a table."""
    return f"o|{topic.label}".encode()


def with_plausible_times(records: Sequence[Any], position: Position) -> tuple[Sequence[Any], Position]:
    """The records of a non-empty block, with a plausible timestamp or 0 each, and the position after them.

    Their offsets are the brokers' still.
    """
    times = [record.timestamp or 0 for record in records]
    newest, end = position.newest_ms, records[-1].offset + 1
    if min(times) >= EARLIEST_MS and (last := max(times)) < LATEST_MS:
        return records, position._replace(offset=end, newest_ms=max(newest, last))
    judged = []
    for record, time in zip(records, times, strict=True):
        if is_plausible(time):
            newest = max(newest, time)
            judged.append(record)
        else:
            judged.append(replace(record, timestamp=newest))
    return judged, position._replace(offset=end, newest_ms=newest)


def with_state_offsets(records: Sequence[Any], shift: int) -> Sequence[Any]:
    """The records with the offsets by which the state knows them."""
    return [replace(record, offset=record.offset + shift) for record in records] if shift else records


def _position_key(topic: Topic) -> bytes:
    # One of ``restoration.POSITION_PREFIXES``; not "p|", which the state of requests has for policies.
    return f"n|{topic.label}".encode()


_HISTORY = msgspec.json.Decoder(History)
