"""The policy of every model, and what it has decided."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from sortedcontainers import SortedDict

from api.view.requests import Place
from foldtune.events import PolicyDecided, RetrainingPolicy
from streams.requests.policies import stored_policy

Keep = Callable[["PolicyEntry"], bool]
# Of each model; older changes are on the topic only.
MAX_CHANGES = 50


class PolicyEntry(NamedTuple):
    """A policy, and where it stands on ``policies``."""

    policy: RetrainingPolicy
    place: Place

    @property
    def etag(self) -> str:
        """Changes with each policy that is set."""
        return f'"{self.place.partition}-{self.place.offset}"'


class PolicyTable:
    """The policies by model."""

    def __init__(self) -> None:
        self._entries: SortedDict[str, PolicyEntry] = SortedDict()
        # Held from a look at a policy to the acknowledgement of the next: two changes of one policy see each other.
        self.changing = asyncio.Lock()

    def apply(self, record: Any, partitions: int) -> PolicyEntry:
        """Take a record of ``policies``; the policy that counts. Raises ``ValueError``."""
        return self.put(stored_policy(record, partitions), Place(record.partition, record.offset))

    def put(self, policy: RetrainingPolicy, place: Place) -> PolicyEntry:
        """Take a policy, unless a later one is known; the one that counts."""
        known = self._entries.get(policy.model)
        if known is None or place.offset > known.place.offset:
            self._entries[policy.model] = PolicyEntry(policy, place)
        return self._entries[policy.model]

    def forget(self, record: Any) -> None:
        """Take a record without a value: the model has no policy any more."""
        model = (record.key or b"").decode(errors="replace")
        known = self._entries.get(model)
        if known and known.place.partition == record.partition and known.place.offset < record.offset:
            del self._entries[model]

    def get(self, model: str) -> PolicyEntry | None:
        """The policy of a model."""
        return self._entries.get(model)

    def page(self, limit: int, keep: Keep, after: str | None = None) -> tuple[list[PolicyEntry], str | None]:
        """At most ``limit`` policies by model, and after which the next page begins."""
        entries: list[PolicyEntry] = []
        for model in self._entries.irange(minimum=after, inclusive=(False, True)):
            if len(entries) == limit:
                return entries, entries[-1].policy.model
            if keep(entry := self._entries[model]):
                entries.append(entry)
        return entries, None


class DecisionTable:
    """The decisions by model."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[datetime, bytes]] = {}
        self._changes: dict[str, SortedDict[datetime, bytes]] = {}

    def apply(self, record: Any) -> None:
        """Take a record of ``policy-decisions``, in any order and however often; raises ``ValueError``."""
        # All of it: whoever reads a list of decisions would stumble over one that is none.
        decided = PolicyDecided.model_validate_json(record.value)
        content = decided.encode()
        newest = self._newest.get(decided.model)
        if newest is None or decided.at >= newest[0]:
            self._newest[decided.model] = (decided.at, content)
        # A change has a key of its own; under the model alone are newer figures.
        if record.key != decided.model.encode():
            changes = self._changes.setdefault(decided.model, SortedDict())
            changes[decided.at] = content
            if len(changes) > MAX_CHANGES:
                changes.popitem(0)

    def newest(self, model: str) -> bytes | None:
        """The newest decision on a model, as JSON."""
        found = self._newest.get(model)
        return found[1] if found else None

    def changes(self, model: str, limit: int) -> list[bytes]:
        """At most ``limit`` changes of the decision on a model, the newest first, as JSON."""
        return list(reversed(self._changes.get(model, SortedDict()).values()))[:limit]
