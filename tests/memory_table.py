"""Tables in memory: of one worker, and of several that write to one changelog."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

from foldtune.topics import MAX_CHANGELOG_RECORD_BYTES
from streams.partitions.changelog_table import Changes, Table
from streams.partitions.producing import check_size

# Has records land, in order, and returns when all of them have.
Deliver = Callable[[Sequence[Callable[[], None]]], Awaitable[None]]


class MemoryTable(Table):
    """Keeps the contract of ``Table`` in dictionaries, bounds included; no other writers, every partition is owned."""

    def __init__(self) -> None:
        self._partitions: dict[int, dict[bytes, bytes]] = defaultdict(dict)

    def owned_generation(self, partition: int) -> int | None:  # noqa: ARG002
        return 0

    async def write(self, partition: int, changes: Changes) -> bool:
        for key, value in changes.items():
            check_size("memory", MAX_CHANGELOG_RECORD_BYTES, key, value)
        for key, value in changes.items():
            if value is None:
                self._partitions[partition].pop(key, None)
            else:
                self._partitions[partition][key] = value
        return True

    def get(self, partition: int, key: bytes) -> bytes | None:
        return self._partitions[partition].get(key)

    def keys(self, partition: int, prefix: bytes) -> Iterator[bytes]:
        return iter(sorted(key for key in self._partitions[partition] if key.startswith(prefix)))

    def reclaim(self, partition: int) -> None:
        """Deleted values leave nothing behind."""


class Changelog:
    """One partition's changelog: what several workers' tables write, in the order in which it lands."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []

    def recovered(self) -> dict[bytes, bytes]:
        """What a recovery finds: the last value of each key."""
        return {key: value for key, value in dict(self.records).items() if value is not None}


class ReplicaTable(Table):
    """One worker's table of one partition, like ``ChangelogTable``; ``deliver`` decides when its records land."""

    def __init__(self, changelog: Changelog, deliver: Deliver) -> None:
        self._changelog = changelog
        self._deliver = deliver
        self._store = changelog.recovered()
        self._checkpoint = len(changelog.records)

    def owned_generation(self, partition: int) -> int | None:  # noqa: ARG002
        # Every worker believes that it owns the partition, all the time.
        return 0

    async def write(self, partition: int, changes: Changes) -> bool:  # noqa: ARG002
        records = self._changelog.records
        for present in (True, False):
            part = [change for change in changes.items() if (change[1] is not None) is present]
            await self._deliver([partial(records.append, change) for change in part])
        first, self._checkpoint = self._checkpoint, len(records)
        for key, value in records[first:]:
            self._store.pop(key, None)
            if value is not None:
                self._store[key] = value
        return self._checkpoint - first == len(changes)

    def get(self, partition: int, key: bytes) -> bytes | None:  # noqa: ARG002
        return self._store.get(key)

    def keys(self, partition: int, prefix: bytes) -> Iterator[bytes]:  # noqa: ARG002
        return iter(sorted(key for key in self._store if key.startswith(prefix)))

    def reclaim(self, partition: int) -> None:
        """Deleted values leave nothing behind."""
