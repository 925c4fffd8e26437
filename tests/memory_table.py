"""A table in memory."""

from collections import defaultdict
from collections.abc import Iterator

from foldtune.topics import MAX_CHANGELOG_RECORD_BYTES
from streams.partitions.changelog_table import Changes, Table
from streams.partitions.producing import check_size


class MemoryTable(Table):
    """Keeps the contract of ``Table`` in dictionaries, bounds included; no other writers, every partition is owned."""

    def __init__(self) -> None:
        self._partitions: dict[int, dict[bytes, bytes]] = defaultdict(dict)

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
