"""The figures of every folder, as workers publish them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from sortedcontainers import SortedDict, SortedList

from api.view import Time
from foldtune.events import SCHEMA_VERSION
from foldtune.snapshot_schema import Label

Keep = Callable[[str], bool]
# Of folders that a filter leaves out: a page that looked at so many is returned as it is.
_MAX_LOOKED_AT = 5_000
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Day(msgspec.Struct, gc=False):
    """A folder's logs of a day (UTC), or of several together."""

    day: date
    logs: int = 0
    labels: dict[str, int] = {}
    cited: int = 0
    cited_first: int = 0
    liked: int = 0
    disliked: int = 0

    @property
    def examples(self) -> int:
        """How many have a positive."""
        return examples_of(self.labels)


class Agent(msgspec.Struct, gc=False):
    """A folder's labelled logs of an agent."""

    agent_id: str
    labels: dict[str, int] = {}


class _Stats(msgspec.Struct, tag="folder_stats", tag_field="type"):
    folder_id: str
    partition: int
    at: Time
    documents: int
    newest_log_at: Time | None = None
    days: list[Day] = []
    earlier: Day | None = None
    agents: list[Agent] = []
    other_agents: dict[str, int] = {}
    left_out: dict[str, int] = {}
    schema_version: int = 1

    @property
    def is_empty(self) -> bool:
        return not (self.days or self.earlier or self.documents or self.left_out)


class _Refreshed(msgspec.Struct, tag="folder_stats_refreshed", tag_field="type"):
    partition: int
    at: Time
    pending: int = 0
    pending_since: Time | None = None
    schema_version: int = 1

    @property
    def as_of(self) -> datetime:
        """As of when the figures of all folders hold."""
        return self.pending_since or self.at if self.pending else self.at


@dataclass(frozen=True)
class DateRange:
    """Whole days (UTC), the first inclusive and the last exclusive."""

    since: date | None = None
    until: date | None = None

    def has(self, day: date) -> bool:
        """Whether the day lies in it."""
        return (self.since is None or day >= self.since) and (self.until is None or day < self.until)


ALL_DAYS = DateRange()


@dataclass
class Folder:
    """What is known of a folder, over all partitions that have it: ``days`` and ``earlier`` of a range, else all."""

    folder_id: str
    as_of: datetime
    documents: int = 0
    newest_log_at: datetime | None = None
    days: list[Day] = field(default_factory=list)
    # Of days before all others only the sum is known.
    earlier: Day | None = None
    # Whether the range divides that sum, which is left out then.
    divided: bool = False
    agents: list[Agent] = field(default_factory=list)
    other_agents: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> Day:
        """All of its days."""
        return _sum([*([self.earlier] if self.earlier else []), *self.days])


class FolderTable:
    """The figures by folder. They stay as they were published until they are asked for: days and agents are many."""

    def __init__(self) -> None:
        self._stats: SortedDict[str, dict[int, bytes]] = SortedDict()
        self._refreshed: dict[int, _Refreshed] = {}
        self._decoder: msgspec.json.Decoder[_Stats | _Refreshed] = msgspec.json.Decoder(_Stats | _Refreshed)

    def apply(self, record: Any) -> None:
        """Take a record of ``folder-stats``; raises ``ValueError``."""
        event = self._decode(record.value)
        if event.schema_version > SCHEMA_VERSION:
            msg = f"schema_version: {event.schema_version} is of a newer release"
            raise ValueError(msg)
        if isinstance(event, _Refreshed):
            self._refreshed[event.partition] = event
        elif not event.is_empty:
            self._stats.setdefault(event.folder_id, {})[event.partition] = record.value
        elif event.folder_id in self._stats:
            self._stats[event.folder_id].pop(event.partition, None)
            if not self._stats[event.folder_id]:
                del self._stats[event.folder_id]

    def names(
        self,
        limit: int,
        keep: Keep,
        *,
        prefix: str = "",
        after: str | None = None,
        only: Collection[str] | None = None,
    ) -> tuple[list[str], str | None]:
        """At most ``limit`` folders in the order of their ids, and after which the next page begins; fewer do not mean
        that there are no more.

        With ``only``, no others are looked at: where the next page begins would name one of them.
        """
        names: list[str] = []
        last: str | None = None
        from_prefix = after is None or after < prefix
        ordered = self._stats if only is None else SortedList(name for name in only if name in self._stats)
        found = ordered.irange(minimum=prefix if from_prefix else after, inclusive=(from_prefix, True))
        for number, name in enumerate(found):
            if not name.startswith(prefix):
                break
            if len(names) == limit or number == _MAX_LOOKED_AT:
                return names, last
            last = name
            if keep(name):
                names.append(name)
        return names, None

    def get(self, folder_id: str, days: DateRange = ALL_DAYS) -> Folder | None:
        """The figures of a folder."""
        parts = [self._decode(value) for value in self._stats.get(folder_id, {}).values()]
        found = [part for part in parts if isinstance(part, _Stats)]
        return _folder(folder_id, found, min(map(self._as_of, found)), days) if found else None

    def as_of(self, partitions: int) -> datetime | None:
        """As of when the figures of all folders hold; ``None`` before all partitions have told theirs."""
        if len(self._refreshed) < partitions:
            return None
        return min((refreshed.as_of for refreshed in self._refreshed.values()), default=None)

    @property
    def pending(self) -> int:
        """How many folders have changed and are not counted yet."""
        return sum(refreshed.pending for refreshed in self._refreshed.values())

    def _as_of(self, stats: _Stats) -> datetime:
        refreshed = self._refreshed.get(stats.partition)
        return max(stats.at, refreshed.as_of if refreshed else _LONG_AGO)

    def _decode(self, value: bytes) -> _Stats | _Refreshed:
        try:
            return self._decoder.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error


def examples_of(labels: dict[str, int]) -> int:
    """How many labelled logs have a positive."""
    return sum(count for label, count in labels.items() if label != Label.DISLIKED)


def _folder(folder_id: str, parts: list[_Stats], as_of: datetime, days: DateRange) -> Folder:
    by_day: dict[date, list[Day]] = defaultdict(list)
    for day in (day for part in parts for day in part.days if days.has(day.day)):
        by_day[day.day].append(day)
    earlier = [part.earlier for part in parts if part.earlier]
    whole = [day for day in earlier if days.since is None and days.has(day.day)]
    agents: dict[str, Counter[str]] = defaultdict(Counter)
    for agent in (agent for part in parts for agent in part.agents):
        agents[agent.agent_id].update(agent.labels)
    return Folder(
        folder_id=folder_id,
        as_of=as_of,
        documents=sum(part.documents for part in parts),
        newest_log_at=max((part.newest_log_at for part in parts if part.newest_log_at), default=None),
        days=[_sum(by_day[day]) for day in sorted(by_day)],
        earlier=_sum(whole) if whole else None,
        divided=any(day not in whole and (days.since is None or day.day >= days.since) for day in earlier),
        agents=[Agent(name, dict(counts)) for name, counts in sorted(agents.items(), key=_by_count)],
        other_agents=_added(part.other_agents for part in parts),
        left_out=_added(part.left_out for part in parts),
    )


def _by_count(item: tuple[str, Counter[str]]) -> tuple[int, str]:
    return -item[1].total(), item[0]


def _sum(days: list[Day]) -> Day:
    if len(days) == 1:
        return days[0]
    return Day(
        day=days[-1].day if days else date.min,
        logs=sum(day.logs for day in days),
        labels=_added(day.labels for day in days),
        cited=sum(day.cited for day in days),
        cited_first=sum(day.cited_first for day in days),
        liked=sum(day.liked for day in days),
        disliked=sum(day.disliked for day in days),
    )


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sorted(sum(map(Counter, counts), Counter[str]()).items()))
