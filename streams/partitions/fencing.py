"""A table in which late writes of a former owner change nothing, for state that decisions are made on.

A worker that was cut off may have records under way for minutes, which land in the changelog between its successor's.
So no owner writes a key that another has written: the keys of state carry the *claim* (epoch, nonce) of their writer,
and only those of the newest confirmed claim are read. Whoever takes over (``_take_over``):

1. applies the foreign writes so far;
2. copies the state of the newest confirmed claim under a claim of its own, one epoch above all that it has seen, and
   writes the claim after the copies, in one write;
3. compares: with this write everything that precedes it in the changelog was applied. If there is no other claim of
   its epoch or above, and what it copied is still the state, the copies are complete; otherwise it starts anew;
4. confirms the claim; if a higher one has appeared meanwhile, it starts anew;
5. deletes what no longer counts.

Why this holds, wherever a worker dies or stalls:

- Every write ends with a look for higher claims, and fails if there is one. What an owner may act on therefore
  precedes all higher claims in the changelog, so whoever takes over has copied it. What follows a higher claim is not
  acted on: it is void once that claim is confirmed, and stays part of the state otherwise.
- A claim that lands late is never confirmed, since its writer compares after it: two confirmed claims have two epochs.
- A confirmation that lands late is below the claim of whoever has taken over since, or there is none.
- Nothing rests on the order of the records of two writers, so neither compaction nor a recovery from the last record
  of each key changes the result; nor on the group's generation, which begins anew when the broker removes the group.

Keys of workers before claims carry none. They count until the first one, and after it where the claim has no such key.
"""

import uuid
from collections.abc import Iterator
from typing import NamedTuple

import structlog

from streams.errors import PartitionLostError
from streams.partitions.changelog_table import Changes, Table

_log = structlog.get_logger()
_BARRIER_KEY = b"t|turn"
_CLAIMS, _STATE = b"f|", b"g|"
_CLAIMED, _CONFIRMED = b"claimed", b"confirmed"


class Claim(NamedTuple):
    """One owner's right to write the state; the highest confirmed one counts."""

    epoch: int
    nonce: bytes

    @property
    def key(self) -> bytes:
        """The key of the claim itself."""
        return _CLAIMS + self._name

    @property
    def prefix(self) -> bytes:
        """The prefix of the keys that are written under it."""
        return _STATE + self._name + b"|"

    @property
    def _name(self) -> bytes:
        return b"%012d|%s" % self

    @classmethod
    def from_key(cls, key: bytes) -> "Claim":
        """The claim with this key."""
        _, epoch, nonce = key.split(b"|")
        return cls(int(epoch), nonce)


class FencedTable(Table):
    """Adds claims to the keys with certain prefixes; others are written as they are.

    Those are for values that are the same whoever writes them, or that may be late.
    """

    def __init__(self, table: Table, fenced: tuple[bytes, ...]) -> None:
        self._table = table
        self._fenced = fenced
        # The claims of this process, with the generation in which each was made.
        self._own: dict[int, tuple[Claim, int]] = {}

    def owned_generation(self, partition: int) -> int | None:
        return self._table.owned_generation(partition)

    def claimed(self, partition: int) -> bool:
        """Whether this process may write, as far as it knows."""
        return self._own_claim(partition) is not None

    async def synchronize(self, partition: int) -> None:
        """Have the table hold all that was decided until now; takes over where this process has not.

        Raises:
            PartitionLostError: another worker has taken over.
        """
        if self.claimed(partition):
            await self.write(partition, {_BARRIER_KEY: b""})
        else:
            await self._take_over(partition)

    async def write(self, partition: int, changes: Changes) -> bool:
        """Like ``Table.write``; after an error nothing may be published that rests on it."""
        claim = self._own_claim(partition)
        if claim is None:
            raise PartitionLostError(partition)
        return await self._write(partition, claim, {self._physical(claim, key): changes[key] for key in changes})

    def get(self, partition: int, key: bytes) -> bytes | None:
        return self._table.get(partition, self._physical(self._read_claim(partition), key))

    def keys(self, partition: int, prefix: bytes) -> Iterator[bytes]:
        claim = self._read_claim(partition)
        physical = self._physical(claim, prefix)
        for key in self._table.keys(partition, physical):
            yield prefix + key.removeprefix(physical)

    def reclaim(self, partition: int) -> None:
        self._table.reclaim(partition)

    async def _take_over(self, partition: int) -> None:
        generation = self._table.owned_generation(partition)
        if generation is None:
            raise PartitionLostError(partition)
        await self._table.write(partition, {_BARRIER_KEY: b""})
        claim = await self._claim(partition)
        while claim is None:
            claim = await self._claim(partition)
        self._own[partition] = claim, generation
        _log.info("requests taken over", partition=partition, epoch=claim.epoch)
        if obsolete := [key for key in self._state_keys(partition) if not key.startswith((claim.prefix, claim.key))]:
            await self._write(partition, claim, dict.fromkeys(obsolete))

    async def _write(self, partition: int, claim: Claim, changes: Changes) -> bool:
        contiguous = await self._table.write(partition, changes)
        if self._above(partition, claim):
            self._own.pop(partition, None)
            _log.warning("another worker has taken over", partition=partition, epoch=claim.epoch)
            raise PartitionLostError(partition)
        return contiguous

    async def _claim(self, partition: int) -> Claim | None:
        """One attempt to take over; ``None`` where other workers have written meanwhile."""
        base, content = self._confirmed(partition), self._content(partition)
        epoch = 1 + max((claim.epoch for claim in self._claims(partition)), default=0)
        claim = Claim(epoch, uuid.uuid4().hex[:16].encode())
        copies: dict[bytes, bytes | None] = {claim.prefix + key: value for key, value in content.items()}
        await self._table.write(partition, {**copies, claim.key: _CLAIMED})
        rivals = any(other.epoch >= epoch for other in self._claims(partition) if other != claim)
        if rivals or self._confirmed(partition) != base or self._content(partition) != content:
            return None
        await self._table.write(partition, {claim.key: _CONFIRMED})
        return None if self._above(partition, claim) else claim

    def _own_claim(self, partition: int) -> Claim | None:
        claim, generation = self._own.get(partition, (None, None))
        return claim if generation == self._table.owned_generation(partition) else None

    def _read_claim(self, partition: int) -> Claim | None:
        return self._own_claim(partition) or self._confirmed(partition)

    def _claims(self, partition: int) -> list[Claim]:
        return [Claim.from_key(key) for key in self._table.keys(partition, _CLAIMS)]

    def _confirmed(self, partition: int) -> Claim | None:
        confirmed = (claim for claim in self._claims(partition) if self._table.get(partition, claim.key) == _CONFIRMED)
        return max(confirmed, default=None)

    def _above(self, partition: int, claim: Claim) -> bool:
        return any(other.epoch > claim.epoch for other in self._claims(partition))

    def _content(self, partition: int) -> dict[bytes, bytes]:
        """The state by its keys without claims."""
        found = {key: key for prefix in self._fenced for key in self._table.keys(partition, prefix)}
        if claim := self._confirmed(partition):
            found |= {key.removeprefix(claim.prefix): key for key in self._table.keys(partition, claim.prefix)}
        values = {key: self._table.get(partition, physical) for key, physical in found.items()}
        return {key: value for key, value in values.items() if value is not None}

    def _state_keys(self, partition: int) -> Iterator[bytes]:
        for prefix in (*self._fenced, _STATE, _CLAIMS):
            yield from self._table.keys(partition, prefix)

    def _physical(self, claim: Claim | None, key: bytes) -> bytes:
        return claim.prefix + key if claim and key.startswith(self._fenced) else key
