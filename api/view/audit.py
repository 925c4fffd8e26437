"""The newest entries of ``audit``."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sortedcontainers import SortedKeyList

from foldtune.events import AuditEntry

# Older ones are on the topic only.
MAX_ENTRIES = 10_000
# Of all of them: one that names ten thousand folders has hundreds of kilobytes.
MAX_BYTES = 64 << 20


class AuditKey(NamedTuple):
    """A place in the list of entries."""

    at: float
    audit_id: str


class Kept(NamedTuple):
    """An entry as it was published, and by what it is found."""

    key: AuditKey
    who: str
    action: str
    model: str | None
    json: bytes


def _key(entry: Kept) -> AuditKey:
    return entry.key


class AuditLog:
    """The entries by time."""

    def __init__(self) -> None:
        self._entries: SortedKeyList[Kept, AuditKey] = SortedKeyList(key=_key)
        self._ids: set[str] = set()
        self._bytes = 0

    def apply(self, record: Any) -> None:
        """Add a record; raises ``ValueError``."""
        entry = AuditEntry.model_validate_json(record.value)
        # A publisher that got no answer may have sent it again.
        if entry.audit_id in self._ids:
            return
        self._ids.add(entry.audit_id)
        key = AuditKey(entry.at.timestamp(), entry.audit_id)
        self._entries.add(Kept(key, entry.who, entry.action, entry.model, record.value))
        self._bytes += len(record.value)
        while len(self._entries) > MAX_ENTRIES or self._bytes > MAX_BYTES:
            oldest = self._entries.pop(0)
            self._ids.discard(oldest.key.audit_id)
            self._bytes -= len(oldest.json)

    def page(
        self, limit: int, keep: Callable[[Kept], bool], after: AuditKey | None = None
    ) -> tuple[list[AuditEntry], AuditKey | None]:
        """At most ``limit`` entries from the newest to the oldest, and where the next page begins."""
        entries: list[Kept] = []
        following: AuditKey | None = None
        for entry in self._entries.irange_key(max_key=after, inclusive=(True, False), reverse=True):
            if len(entries) == limit:
                following = entries[-1].key
                break
            if keep(entry):
                entries.append(entry)
        return [AuditEntry.model_validate_json(entry.json) for entry in entries], following
