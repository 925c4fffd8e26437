"""A folder's figures: what its training set holds by day, label and agent, counted as an export would.

The part that computes runs in the export process, as ``export_child`` does.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from foldtune.events import MAX_STATS_AGENTS, MAX_STATS_DAYS, AgentCount, FolderDay
from foldtune.settings import LabelWeights, SetLimits
from streams.snapshots.labels import label, without_deleted
from streams.snapshots.quality import DayQuality
from streams.training_sets.erasures import Erasures
from streams.training_sets.fold import FolderSet, fold
from streams.training_sets.segments import unpack
from streams.training_sets.state_events import ChatLog, StateRecord

# Of what the policy compares: the longest window and the longest baseline.
_QUALITY_DAYS = 180


@dataclass(frozen=True)
class Figures:
    """A folder's figures, without what only the caller knows."""

    examples: int = 0
    documents: int = 0
    newest_log_at: datetime | None = None
    # The folder has other figures once this log is too old.
    oldest_log_at: datetime | None = None
    labels: dict[str, int] = field(default_factory=dict)
    days: tuple[FolderDay, ...] = ()
    earlier: FolderDay | None = None
    agents: tuple[AgentCount, ...] = ()
    other_agents: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What a worker keeps in memory of a folder's figures."""

    examples: int = 0
    documents: int = 0
    # Of the newest days, packed: a worker may have many folders.
    packed_days: bytes = b""

    @classmethod
    def of(cls, figures: Figures) -> "Summary":
        """The part that the policy asks for."""
        days = array("l", [count for day in figures.days[-_QUALITY_DAYS:] for count in DayQuality.of(day)])
        return cls(figures.examples, figures.documents, days.tobytes())

    @property
    def days(self) -> Iterator[DayQuality]:
        """The quality of each day with logs."""
        counts = array("l", self.packed_days)
        for start in range(0, len(counts), len(DayQuality._fields)):
            yield DayQuality(*counts[start : start + len(DayQuality._fields)])


def figures(folder: FolderSet, weights: LabelWeights) -> Figures:
    """Count a folder: each log once, as ``export_child`` selects them for a request that selects all."""
    days, day_labels = defaultdict[date, Counter[str]](Counter), defaultdict[date, Counter[str]](Counter)
    agents = defaultdict[str, Counter[str]](Counter)
    labels, left_out, examples = Counter[str](), Counter[str](), 0
    for judged in folder.logs:
        log = judged.log
        day = log.occurred_at.astimezone(UTC).date()
        counts = days[day]
        counts["logs"] += 1
        if log.cited_document_ids:
            counts["cited"] += 1
            counts["cited_first"] += _is_cited_first(log)
        if judged.verdict and judged.verdict.rating:
            counts[f"{judged.verdict.rating}d"] += 1
        if (labelled := label(judged, weights, negatives=False)) is None:
            left_out["no label"] += 1
        elif (example := without_deleted(labelled, folder)) is None:
            left_out["document deleted"] += 1
        else:
            examples += example.positive is not None
            name = example.label.value
            labels[name] += 1
            day_labels[day][name] += 1
            agents[log.agent_id][name] += 1
    by_day = [
        FolderDay(day=day, labels=dict(sorted(day_labels[day].items())), **counts)
        for day, counts in sorted(days.items())
    ]
    by_count = sorted(agents.items(), key=lambda item: (-item[1].total(), item[0]))
    return Figures(
        examples=examples,
        documents=len(folder.documents),
        newest_log_at=folder.logs[-1].log.occurred_at if folder.logs else None,
        oldest_log_at=folder.logs[0].log.occurred_at if folder.logs else None,
        labels=dict(sorted(labels.items())),
        days=tuple(by_day[-MAX_STATS_DAYS:]),
        earlier=_sum(by_day[:-MAX_STATS_DAYS]),
        agents=tuple(
            AgentCount(agent_id=agent_id, labels=dict(sorted(counts.items())))
            for agent_id, counts in by_count[:MAX_STATS_AGENTS]
        ),
        other_agents=dict(sorted(sum((counts for _, counts in by_count[MAX_STATS_AGENTS:]), Counter[str]()).items())),
        left_out=dict(sorted(left_out.items())),
    )


def _is_cited_first(log: ChatLog) -> bool:
    return any(passage.rank == 1 and passage.document_id in log.cited_document_ids for passage in log.retrieved)


def _sum(days: list[FolderDay]) -> FolderDay | None:
    if not days:
        return None
    labels = sum((Counter(day.labels) for day in days), Counter[str]())
    counts = {
        name: sum(getattr(day, name) for day in days) for name in ("logs", "cited", "cited_first", "liked", "disliked")
    }
    return FolderDay(day=days[-1].day, labels=dict(sorted(labels.items())), **counts)


# ── In the export process ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Count:
    erasures: Erasures
    weights: LabelWeights
    next_offsets: dict[str, int]
    records: list[StateRecord] = field(default_factory=list)


# One at a time, under a number that the caller draws: this process may have been started anew in between.
_counts: dict[int, _Count] = {}


def begin(number: int, erasures: Erasures, weights: LabelWeights, next_offsets: dict[str, int]) -> None:
    """Start to count folders; what was begun before is given up."""
    _counts.clear()
    _counts[number] = _Count(erasures, weights, next_offsets)


def add_segments(number: int, contents: Iterable[tuple[str, bytes]]) -> None:
    """Decode segments of the current folder, given as topic label and content; raises like ``finish_folder``."""
    count = _count_of(number)
    for topic, content in contents:
        end = count.next_offsets.get(topic, 1 << 63)
        count.records += [record for record in unpack(content) if record.offset < end]


def finish_folder(number: int, folder_id: str, limits: SetLimits, as_of: datetime) -> Figures:
    """The figures of the folder whose segments were added since the last one.

    Raises:
        OSError: the count was begun in a process that has died.
    """
    count = _count_of(number)
    records, count.records = count.records, []
    return figures(fold(folder_id, records, count.erasures, limits, as_of), count.weights)


def _count_of(number: int) -> _Count:
    try:
        return _counts[number]
    except KeyError:
        raise OSError("the export process was restarted during the count") from None
