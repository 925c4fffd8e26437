"""Where a partition is continued: the next offset, and the time that a record without a time of its own counts as.

What is made of a record must not depend on how the topic was cut into blocks, or on which worker read it when. So each
record is judged by its own timestamp. Where that cannot be meant (``foldtune.bounds.is_plausible``), the record counts
as written at the newest plausible time before it in its partition. That time is a part of the state: one value holds it
and the offset that it belongs to, so that a redelivery from there judges alike.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog

from foldtune.bounds import EARLIEST_MS, LATEST_MS, is_plausible
from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.changelog_table import Changes, Table

_log = structlog.get_logger()
# The offset, and the newest timestamp.
_POSITION = re.compile(rb"(\d{1,18})(?: (\d{1,13}))?")


class Position(NamedTuple):
    """The next offset of a topic, and the newest plausible timestamp of the records before it (0: none)."""

    offset: int
    newest_ms: int


def stored_position(table: Table, topic: Topic, partition: int) -> Position:
    """The position of a topic, as the table has it."""
    # Version 0.1.0 stored the offset alone.
    for key in (_position_key(topic), offset_key(topic)):
        if not (value := table.get(partition, key)):
            continue
        if match := _POSITION.fullmatch(value):
            return Position(int(match[1]), int(match[2] or 0))
        # Written by somebody else. Records that are handled again change nothing.
        _log.error("stored offset not readable", topic=topic.label, partition=partition, key=key, value=value[:100])
    return Position(0, 0)


def position_changes(topic: Topic, position: Position) -> Changes:
    """What stores a position; the offset also by itself, where version 0.1.0 looks for it after a rollback."""
    return {_position_key(topic): b"%d %d" % position, offset_key(topic): b"%d" % position.offset}


def newest_time(table: Table, partition: int) -> datetime:
    """The newest plausible time of the data topics' records that were handled; 1970 if there is none."""
    newest = max(stored_position(table, topic, partition).newest_ms for topic in DATA_TOPICS)
    return datetime.fromtimestamp(newest / 1000, UTC)


def offset_key(topic: Topic) -> bytes:
    """The key of a topic's next offset in a table."""
    return f"o|{topic.label}".encode()


def with_plausible_times(records: Sequence[Any], position: Position) -> tuple[Sequence[Any], Position]:
    """The records of a non-empty block, with a plausible timestamp or 0 each, and the position after them."""
    times = [record.timestamp or 0 for record in records]
    newest, end = position.newest_ms, records[-1].offset + 1
    if min(times) >= EARLIEST_MS and (last := max(times)) < LATEST_MS:
        return records, Position(end, max(newest, last))
    judged = []
    for record, time in zip(records, times, strict=True):
        if is_plausible(time):
            newest = max(newest, time)
            judged.append(record)
        else:
            judged.append(replace(record, timestamp=newest))
    return judged, Position(end, newest)


def _position_key(topic: Topic) -> bytes:
    return f"p|{topic.label}".encode()
