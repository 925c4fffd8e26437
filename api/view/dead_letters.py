"""The dead letters, without their bytes."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from sortedcontainers import SortedList

from streams.publishing.dead_letter_replay import DeadLetter, DeadLetterIndex

Keep = Callable[[DeadLetter], bool]
# Of letters that a filter leaves out: a page that looked at so many is returned as it is.
_MAX_LOOKED_AT = 5_000
# Of all that is kept of them, some hundred thousand: one broken producer makes millions a day, and their keys and
# reasons have any length. Older ones are on the topic only.
MAX_BYTES = 128 << 20
_LETTER_BYTES = 1_000
_CAUSE = 200
# Of a reason what differs from record to record: names and times, and numbers.
_VALUES = re.compile(r"""'[^']*'|"[^"]*"|\b\d{4}-\d\d-\d\d[\d:.TZ+-]*""")
_NUMBERS = re.compile(r"(?<![a-z_])\d+(?:[.,]\d+)*")


class Cause(NamedTuple):
    """What letters have in common: where they came from, and why they were rejected."""

    topic: str | None
    reason: str


def cause_of(letter: DeadLetter) -> Cause:
    """A letter's cause, without the values that it names."""
    reason = _NUMBERS.sub("N", _VALUES.sub("…", letter.error[:_CAUSE]))
    return Cause(letter.origin.topic if letter.origin else None, reason)


class LetterKey(NamedTuple):
    """A place in the list of dead letters."""

    at: float
    partition: int
    offset: int


class DeadLetterTable:
    """The dead letters by time."""

    def __init__(self) -> None:
        self._index = DeadLetterIndex()
        self._order: SortedList[LetterKey] = SortedList()
        self._bytes = 0
        self.causes: Counter[Cause] = Counter()

    def apply(self, record: Any) -> None:
        """Add a record of ``dead-letters``."""
        letter = self._index.add(record)
        if letter is None:
            return
        self._order.add(_key(letter))
        self._bytes += _size(letter)
        self.causes[cause_of(letter)] += 1
        while self._bytes > MAX_BYTES:
            oldest = self._order.pop(0)
            if found := self._index.discard(f"{oldest.partition}:{oldest.offset}"):
                self._bytes -= _size(found)
                self._uncount(cause_of(found))

    def _uncount(self, cause: Cause) -> None:
        self.causes[cause] -= 1
        if not self.causes[cause]:
            del self.causes[cause]

    def get(self, letter_id: str) -> DeadLetter | None:
        """A dead letter by its id."""
        return self._index.get(letter_id)

    def page(self, limit: int, keep: Keep, after: LetterKey | None = None) -> tuple[list[DeadLetter], LetterKey | None]:
        """At most ``limit`` dead letters, the newest first, and where the next page begins."""
        letters: list[DeadLetter] = []
        last: LetterKey | None = None
        places = self._order.irange(maximum=after, inclusive=(True, False), reverse=True)
        for number, place in enumerate(places):
            if len(letters) == limit or number == _MAX_LOOKED_AT:
                return letters, last
            last = place
            letter = self._index.get(f"{place.partition}:{place.offset}")
            if letter is not None and keep(letter):
                letters.append(letter)
        return letters, None


def _size(letter: DeadLetter) -> int:
    return (
        _LETTER_BYTES
        + len(letter.error)
        + min(len(letter.error), _CAUSE)
        + len(letter.key or b"")
        + len(letter.folder_id or "")
    )


def _key(letter: DeadLetter) -> LetterKey:
    return LetterKey(letter.at.timestamp(), letter.partition, letter.offset)
