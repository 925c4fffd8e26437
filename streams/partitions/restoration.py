"""A changelog that has lost its end, or was deleted and made anew, gets again what its partition's owner has.

The owner's store is the only full copy of the state then. Its next write notices: the acknowledged offset is not above
the checkpoint. What the changelog lacks is written to it, and the result read, until both are equal.

The order is for a worker that dies meanwhile: where topics are continued comes last. What is recovered from half of it
may lack records, and continues before them, so they are read again. The write that noticed may itself be where a topic
is continued, or delete what the changelog has no other copy of: that is undone before anything else, with what the
changelog held before; where it held no position, the topic is continued at its beginning.

The stores of other workers that have owned the partition may have a former part of the changelog, up to an offset that
belongs to another record now, and would miss what precedes that. So every write ends with the *lineage* of what is in
the changelog now, until the end of the former one is passed: whatever offset a store recovers from, or a standby's has
reached, it meets that, and is removed if it has another one (``streams.partitions.local_store``).
"""

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from typing import NamedTuple

LINEAGE_KEY = b"x|lineage"
# Of where topics are continued (``streams.partitions.positions``).
POSITION_PREFIXES = (b"n|", b"o|")


class Lineage(NamedTuple):
    """Tells a changelog that was written again from its former self; the first one has none."""

    name: bytes = b""
    # The last offset of the former changelog, as far as a store can have it.
    end: int = -1

    @classmethod
    def new(cls, end: int) -> "Lineage":
        """Another one than any before."""
        return cls(uuid.uuid4().hex.encode(), end)

    @classmethod
    def decode(cls, value: bytes | None) -> "Lineage":
        """The inverse of ``encode``."""
        name, _, end = (value or b"").partition(b" ")
        return cls(name, int(end)) if name else cls()

    def encode(self) -> bytes:
        """The value that stores it."""
        return b"%s %d" % self


def to_undo(changes: Mapping[bytes, bytes | None]) -> dict[bytes, bytes | None]:
    """The changes that are true only of a changelog that has all that precedes them; positions with offset 0.

    Their time is 0 as well, their history the same.
    """
    undone = dict[bytes, bytes | None]()
    for key, value in changes.items():
        if value is None:
            undone[key] = None
        elif key.startswith(POSITION_PREFIXES):
            numbers = value.split(b" ", 2)
            undone[key] = b" ".join([b"0"] * len(numbers[:2]) + numbers[2:])
    return undone


class Missing(NamedTuple):
    """The keys of what a changelog lacks, in the order in which it is to be written."""

    state: list[bytes]
    deletes: list[bytes]
    positions: list[bytes]


def digest(value: bytes) -> bytes:
    """What tells two values apart in little memory."""
    return hashlib.blake2b(value, digest_size=16).digest()


def missing(state: Iterable[tuple[bytes, bytes]], changelog: Mapping[bytes, bytes]) -> Missing:
    """What a changelog, given as the digests of its last values by key, lacks of a state."""
    found, left = Missing([], [], []), set(changelog)
    for key, value in state:
        left.discard(key)
        if changelog.get(key) != digest(value):
            (found.positions if key.startswith(POSITION_PREFIXES) else found.state).append(key)
    found.deletes.extend(sorted(left))
    return found
