"""The newest entries of ``audit``."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sortedcontainers import SortedKeyList

from foldtune.events import AuditEntry

# Older ones are on the topic only.
MAX_ENTRIES = 10_000


class AuditKey(NamedTuple):
    """A place in the list of entries."""

    at: float
    audit_id: str


def _key(entry: AuditEntry) -> AuditKey:
    return AuditKey(entry.at.timestamp(), entry.audit_id)


class AuditLog:
    """The entries by time."""

    def __init__(self) -> None:
        self._entries: SortedKeyList[AuditEntry, AuditKey] = SortedKeyList(key=_key)
        self._ids: set[str] = set()

    def apply(self, record: Any) -> None:
        """Add a record; raises ``ValueError``."""
        entry = AuditEntry.model_validate_json(record.value)
        # A publisher that got no answer may have sent it again.
        if entry.audit_id in self._ids:
            return
        self._ids.add(entry.audit_id)
        self._entries.add(entry)
        if len(self._entries) > MAX_ENTRIES:
            self._ids.discard(self._entries.pop(0).audit_id)

    def page(
        self, limit: int, keep: Callable[[AuditEntry], bool], after: AuditKey | None = None
    ) -> tuple[list[AuditEntry], AuditKey | None]:
        """At most ``limit`` entries from the newest to the oldest, and where the next page begins."""
        entries: list[AuditEntry] = []
        for entry in self._entries.irange_key(max_key=after, inclusive=(True, False), reverse=True):
            if len(entries) == limit:
                return entries, _key(entries[-1])
            if keep(entry):
                entries.append(entry)
        return entries, None
