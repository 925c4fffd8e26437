"""What a topic no longer has when a partition is continued: noticed, and told once.

Three things happen to a topic behind a reader's back:

- its oldest records expire, by its retention or because somebody deletes them, before they were read;
- it is truncated: an unclean election made a broker its leader that did not have its end. The brokers give the same
  offsets to other records then;
- it is deleted and made anew.

In the first case reading goes on where the topic begins now. In the others it does so, too, since nobody can tell which
of its records are new; what is read again is a copy, and counts once. What the brokers call by an offset that was read
before is another record now, so the state's offsets go on: the shift grows by as much as the brokers' went back.

How many records were lost for which cause is stored with the position, in one value: it counts once, however often the
records behind it are redelivered, and the statuses of requests tell it.
"""

from datetime import datetime
from typing import Final

import structlog

from foldtune.bounds import epoch_ms
from foldtune.topics import Topic
from streams.metrics import LOST_RECORDS
from streams.partitions.positions import History, Lost, Position

_log = structlog.get_logger()
EXPIRED: Final = "expired"
TRUNCATED: Final = "truncated"
RECREATED: Final = "recreated"


def is_recreated(position: Position, topic_id: str) -> bool:
    """Whether a topic with this id is another one than the position's; an empty id is not known."""
    return bool(topic_id and position.history.topic_id and topic_id != position.history.topic_id)


def continued(position: Position, first: int, end: int, topic_id: str, now: datetime) -> Position:
    """Where to go on in a topic that has the offsets from ``first`` to below ``end`` now; the same if it has the next.

    The number of lost records is exact where they expired: those that were not read. Otherwise it is that of the
    records that were read and are no longer on the topic (all, of one made anew); whether others are gone that were
    not read, nobody can tell.
    """
    if is_recreated(position, topic_id):
        cause, records = RECREATED, position.offset
    elif end < position.offset:
        cause, records = TRUNCATED, position.offset - end
    elif first > position.offset:
        cause, records = EXPIRED, first - position.offset
    else:
        return position
    history = position.history
    known = history.lost.get(cause, Lost())
    return Position(
        first,
        position.newest_ms,
        History(
            topic_id=topic_id or history.topic_id,
            shift=history.shift if cause == EXPIRED else history.shift + max(position.offset - first, 0),
            # Of a topic that was made anew before anything was read, nothing is known to be lost.
            lost=history.lost | ({cause: Lost(known.records + records, epoch_ms(now))} if records else {}),
        ),
    )


def tell_losses(topic: Topic, partition: int, before: Position, after: Position) -> None:
    """Log and count what was lost between two positions."""
    for cause, lost in after.history.lost.items():
        records = lost.records - before.history.lost.get(cause, Lost()).records
        if records:
            LOST_RECORDS.labels(topic.label, cause).inc(records)
            _log.error(
                "records lost",
                topic=topic.label,
                partition=partition,
                cause=cause,
                records=records,
                offset=before.offset,
                continued_at=after.offset,
                shift=after.history.shift,
            )
