"""The figures of every folder, as workers publish them."""

from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import accumulate, chain
from operator import sub
from sys import intern, maxsize
from typing import Annotated, Any

import msgspec
from sortedcontainers import SortedDict, SortedList

from api.view import Time
from foldtune.events import MAX_STATS_DAYS, SCHEMA_VERSION
from foldtune.snapshot_schema import Label

Keep = Callable[[str], bool]
# Of folders that a filter leaves out: a page that looked at so many is returned as it is.
_MAX_LOOKED_AT = 5_000
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


# More than any day has, and so few that the sums of all days fit into 64 bits.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_Labels = dict[str, _Count]


class Day(msgspec.Struct, gc=False):
    """A folder's logs of a day (UTC), or of several together."""

    day: date
    logs: _Count = 0
    labels: _Labels = {}
    cited: _Count = 0
    cited_first: _Count = 0
    liked: _Count = 0
    disliked: _Count = 0

    @property
    def examples(self) -> int:
        """How many have a positive."""
        return examples_of(self.labels)


class Agent(msgspec.Struct, gc=False):
    """A folder's labelled logs of an agent."""

    agent_id: str
    labels: _Labels = {}


class _Stats(msgspec.Struct, tag="folder_stats", tag_field="type"):
    folder_id: str
    partition: int
    at: Time
    documents: int
    newest_log_at: Time | None = None
    days: list[Day] = []
    earlier: Day | None = None
    agents: list[Agent] = []
    other_agents: _Labels = {}
    left_out: _Labels = {}
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


_COUNTS = ("logs", "cited", "cited_first", "liked", "disliked")


class _Part:
    """A folder's figures of one partition, as they are kept: days and agents are many, and asked for rarely."""

    __slots__ = (
        "_agents",
        "_days",
        "_labels",
        "_sums",
        "at",
        "documents",
        "earlier",
        "left_out",
        "newest_log_at",
        "other_agents",
        "partition",
    )

    def __init__(self, stats: _Stats) -> None:
        self.partition = stats.partition
        self.at = stats.at
        self.documents = stats.documents
        self.newest_log_at = stats.newest_log_at
        self.earlier = stats.earlier
        self.left_out = stats.left_out
        self.other_agents = stats.other_agents
        self._agents = msgspec.json.encode(stats.agents)
        days = sorted(stats.days, key=lambda day: day.day)
        self._labels = tuple(sorted({intern(label) for day in days for label in day.labels}))
        self._days = array("i", [day.day.toordinal() for day in days])
        # A row of zeros, and one after each day: the sums of all counts so far, from which any range has its own.
        columns = [
            *([getattr(day, name) for day in days] for name in _COUNTS),
            *([day.labels.get(name, 0) for day in days] for name in self._labels),
        ]
        sums = (accumulate(column, initial=0) for column in columns)
        self._sums = array("q", chain.from_iterable(zip(*sums, strict=True)))

    def total(self, days: DateRange) -> Day:
        """All days of a range."""
        first, end = self._places(days)
        return self._between(first, end)

    def by_day(self, days: DateRange, newest: int) -> Iterator[Day]:
        """The newest days of a range, in order."""
        first, end = self._places(days)
        return (self._between(place, place + 1) for place in range(max(first, end - newest), end))

    def logs_by_day(self) -> dict[int, int]:
        """How many logs each day has, by its ordinal."""
        sums = self._sums[:: len(_COUNTS) + len(self._labels)]
        return dict(zip(self._days, map(sub, sums[1:], sums), strict=False))

    def agents(self) -> list[Agent]:
        """The agents, as they were published."""
        return msgspec.json.decode(self._agents, type=list[Agent])

    def _places(self, days: DateRange) -> tuple[int, int]:
        return (
            0 if days.since is None else bisect_left(self._days, days.since.toordinal()),
            len(self._days) if days.until is None else bisect_left(self._days, days.until.toordinal()),
        )

    def _between(self, first: int, end: int) -> Day:
        if end <= first:
            return Day(date.min)
        width = len(_COUNTS) + len(self._labels)
        before, after = (self._sums[width * place : width * (place + 1)] for place in (first, end))
        counts = list(map(sub, after, before))
        labels = zip(self._labels, counts[len(_COUNTS) :], strict=True)
        return Day(
            date.fromordinal(self._days[end - 1]),
            labels={label: count for label, count in labels if count},
            **dict(zip(_COUNTS, counts, strict=False)),
        )


@dataclass(frozen=True)
class Folder:
    """What is known of a folder, over all partitions that have it: its days are those of a range, else all."""

    folder_id: str
    as_of: datetime
    _parts: list[_Part]
    _range: DateRange

    @property
    def documents(self) -> int:
        """How many it has."""
        return sum(part.documents for part in self._parts)

    @property
    def newest_log_at(self) -> datetime | None:
        """Of any day."""
        return max((part.newest_log_at for part in self._parts if part.newest_log_at), default=None)

    @property
    def left_out(self) -> dict[str, int]:
        """Logs of any day without an example, by reason."""
        return _added(part.left_out for part in self._parts)

    @property
    def total(self) -> Day:
        """All of its days."""
        return _sum([*self._whole, *(part.total(self._range) for part in self._parts)])

    def days(self, newest: int = maxsize) -> list[Day]:
        """The newest ones with logs, in order."""
        by_day: dict[date, list[Day]] = defaultdict(list)
        for day in (day for part in self._parts for day in part.by_day(self._range, newest)):
            by_day[day.day].append(day)
        return [_sum(by_day[day]) for day in sorted(by_day)[-newest:]]

    @property
    def earlier(self) -> Day | None:
        """Of days before all others only the sum is known."""
        return _sum(self._whole) if self._whole else None

    @property
    def divided(self) -> bool:
        """Whether the range divides that sum, which is left out then."""
        since = self._range.since
        sums = [part.earlier for part in self._parts if part.earlier]
        return any(not self._has_whole(day) and (since is None or day.day >= since) for day in sums)

    @property
    def agents(self) -> list[Agent]:
        """Those with most labelled logs first, of any day."""
        agents: dict[str, Counter[str]] = defaultdict(Counter)
        for agent in (agent for part in self._parts for agent in part.agents()):
            agents[agent.agent_id].update(agent.labels)
        return [Agent(name, dict(counts)) for name, counts in sorted(agents.items(), key=_by_count)]

    @property
    def other_agents(self) -> dict[str, int]:
        """The labels of all further agents."""
        return _added(part.other_agents for part in self._parts)

    @property
    def _whole(self) -> list[Day]:
        return [part.earlier for part in self._parts if part.earlier and self._has_whole(part.earlier)]

    def _has_whole(self, earlier: Day) -> bool:
        return self._range.since is None and self._range.has(earlier.day)


class FolderTable:
    """The figures by folder."""

    def __init__(self) -> None:
        self._parts: SortedDict[str, dict[int, _Part]] = SortedDict()
        self._logs_by_day: Counter[int] = Counter()
        self._refreshed: dict[int, _Refreshed] = {}
        self._decoder: msgspec.json.Decoder[_Stats | _Refreshed] = msgspec.json.Decoder(_Stats | _Refreshed)

    def apply(self, record: Any) -> None:
        """Take a record of ``folder-stats``; raises ``ValueError``."""
        try:
            event = self._decoder.decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        if event.schema_version > SCHEMA_VERSION:
            msg = f"schema_version: {event.schema_version} is of a newer release"
            raise ValueError(msg)
        if isinstance(event, _Refreshed):
            self._refreshed[event.partition] = event
            return
        parts = self._parts.get(event.folder_id, {})
        if before := parts.pop(event.partition, None):
            self._logs_by_day.subtract(before.logs_by_day())
        if not event.is_empty:
            part = parts[event.partition] = _Part(event)
            self._logs_by_day.update(part.logs_by_day())
            self._parts[event.folder_id] = parts
        elif before and not parts:
            del self._parts[event.folder_id]

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
        ordered = self._parts if only is None else SortedList(name for name in only if name in self._parts)
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
        parts = [*self._parts.get(folder_id, {}).values()]
        return Folder(folder_id, min(map(self._as_of, parts)), parts, days) if parts else None

    def logs_by_day(self, only: Collection[str] | None = None) -> list[tuple[date, int]]:
        """How many logs each day has, over all folders or only some: of the newest days with logs."""
        counts = self._logs_by_day
        if only is not None:
            counts = Counter()
            for part in (part for name in only for part in self._parts.get(name, {}).values()):
                counts.update(part.logs_by_day())
        newest = [(day, logs) for day, logs in sorted(counts.items()) if logs][-MAX_STATS_DAYS:]
        return [(date.fromordinal(day), logs) for day, logs in newest]

    def as_of(self, partitions: int) -> datetime | None:
        """As of when the figures of all folders hold; ``None`` before all partitions have told theirs."""
        if len(self._refreshed) < partitions:
            return None
        return min((refreshed.as_of for refreshed in self._refreshed.values()), default=None)

    @property
    def pending(self) -> int:
        """How many folders have changed and are not counted yet."""
        return sum(refreshed.pending for refreshed in self._refreshed.values())

    def _as_of(self, part: _Part) -> datetime:
        refreshed = self._refreshed.get(part.partition)
        return max(part.at, refreshed.as_of if refreshed else _LONG_AGO)


def examples_of(labels: dict[str, int]) -> int:
    """How many labelled logs have a positive."""
    return sum(count for label, count in labels.items() if label != Label.DISLIKED)


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
