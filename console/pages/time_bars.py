"""Pictures of days: what a folder has had over time."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import accumulate
from typing import Any, NamedTuple

# As many bars as a narrow page has room for, and of how many days each may be.
_MOST_BARS = 60
_DAYS_OF_A_BAR = (1, 7, 28, 91, 364)
_COUNTS = ("logs", "examples", "cited", "cited_first", "liked", "disliked")
# How high a picture is, in its own units.
_HEIGHT = 100


class Bar(NamedTuple):
    """Some days together."""

    begins: date
    counts: Counter[str]
    labels: Counter[str]


class Bars(NamedTuple):
    """Days by as many bars as there is room for; of each label a path of the picture, the lowest first."""

    days: int
    bars: list[Bar]
    labels: dict[str, str]
    top: int


def bars_of(days: Sequence[Mapping[str, Any]], labels: Iterable[str]) -> Bars | None:
    """Of a folder's days; ``None`` without any."""
    if not days:
        return None
    dates = [date.fromisoformat(day["day"]) for day in days]
    span = (max(dates) - min(dates)).days + 1
    each = next((each for each in _DAYS_OF_A_BAR if span <= each * _MOST_BARS), -(-span // _MOST_BARS))
    count = -(-span // each)
    first = max(dates).toordinal() + 1 - each * count
    # The first may begin before there are days.
    bars = [Bar(date.fromordinal(max(1, first + each * number)), Counter(), Counter()) for number in range(count)]
    for at, day in zip(dates, days, strict=True):
        bar = bars[(at.toordinal() - first) // each]
        bar.counts.update({name: day[name] for name in _COUNTS})
        bar.labels.update(day["labels"])
    shown = list(labels)
    heights = [list(accumulate((bar.labels[label] for label in shown), initial=0)) for bar in bars]
    top = max(1, *(height[-1] for height in heights))
    paths = {
        label: _path([(height[at], height[at + 1]) for height in heights], top)
        for at, label in enumerate(shown)
        if any(bar.labels[label] for bar in bars)
    }
    return Bars(each, bars, paths, top)


def newest_days(folder: Mapping[str, Any], count: int) -> tuple[int, str]:
    """How many logs the days before a folder's figures have had, and the path of a picture of them."""
    until = datetime.fromisoformat(folder["as_of"]).date()
    by_day = Counter({until - date.fromisoformat(day["day"]): day["logs"] for day in folder["days"]})
    logs = [by_day[timedelta(days=ago)] for ago in reversed(range(count))]
    return sum(logs), _path([(0, number) for number in logs], max(1, *logs))


def _path(spans: Iterable[tuple[int, int]], top: int) -> str:
    """Bars beside each other, from one height to another."""
    return "".join(
        f"M{place}.1 {_HEIGHT - _HEIGHT * high / top:.4g}h.8V{_HEIGHT - _HEIGHT * low / top:.4g}h-.8z"
        for place, (low, high) in enumerate(spans)
        if high > low
    )
