"""Whether the live quality of a folder has fallen, or may have by chance.

Of three measures each is a share: good answers of all. The recent days are compared with those before them by Fisher's
exact test, one-sided: the probability that so few of the good answers fall into the recent days if they are drawn at
random. It supposes that answers are independent of each other; those of one conversation are not quite.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from math import erfc, exp, lgamma, sqrt
from typing import NamedTuple

from foldtune.events import FolderDay, FolderQuality

# By measure: what is good, of what. All are days' counts.
MEASURES = ("cited_first", "liked", "answered")
# Of each partition, those with the least probability are reported.
REPORTED = 3
# Beyond so many terms the normal distribution is as good: counts of an event may be of any size.
_MAX_TERMS = 20_000


class DayQuality(NamedTuple):
    """What is kept of a day: its number since year 1, and counts."""

    day: int
    logs: int
    cited: int
    cited_first: int
    liked: int
    disliked: int

    @classmethod
    def of(cls, day: FolderDay) -> "DayQuality":
        """The counts of a day."""
        return cls(day.day.toordinal(), day.logs, day.cited, day.cited_first, day.liked, day.disliked)


def fall(figure: FolderQuality) -> float:
    """By how much the share is lower than before; 0 if there is nothing to compare."""
    if not (figure.all and figure.all_before):
        return 0.0
    return figure.good_before / figure.all_before - figure.good / figure.all


def chance(figure: FolderQuality) -> float:
    """The probability of so low a share, or a lower one, if nothing has changed (Fisher's exact test)."""
    # Figures are those of an event, which may contradict each other.
    found, before = min(figure.good, figure.all), min(figure.good_before, figure.all_before)
    good, total = found + before, figure.all + figure.all_before
    if not (figure.all and figure.all_before) or good in {0, total}:
        return 1.0
    least = max(0, figure.all - (total - good))
    if found - least > _MAX_TERMS:
        return _large_chance(found, figure.all, good, total)
    most = _log_choose(total, figure.all)
    probability = 0.0
    # From the observed count down: the terms fall ever faster once below the mean.
    for number in range(found, least - 1, -1):
        term = exp(_log_choose(good, number) + _log_choose(total - good, figure.all - number) - most)
        probability += term
        if term < probability * 1e-12 and number < figure.all * good / total:
            break
    return min(probability, 1.0)


def _large_chance(found: int, drawn: int, good: int, total: int) -> float:
    """The same by the normal distribution."""
    mean = drawn * good / total
    variance = mean * (total - good) / total * (total - drawn) / (total - 1)
    return erfc((mean - found - 0.5) / sqrt(2 * variance)) / 2


def _log_choose(count: int, chosen: int) -> float:
    return lgamma(count + 1) - lgamma(chosen + 1) - lgamma(count - chosen + 1)


def compared(
    folders: Mapping[str, Iterable[DayQuality]], today: date, window: int, baseline: int
) -> Iterator[FolderQuality]:
    """Each folder's measures in the last ``window`` days with ``today``, and in the ``baseline`` days before them.

    Only those with something to compare.
    """
    last = today.toordinal()
    for folder_id, days in folders.items():
        recent, before = [0] * 6, [0] * 6
        for day in days:
            if last - window < day.day <= last:
                recent = [have + more for have, more in zip(recent, day, strict=True)]
            elif last - window - baseline < day.day <= last - window:
                before = [have + more for have, more in zip(before, day, strict=True)]
        pairs = zip(MEASURES, _shares(DayQuality(*recent)), _shares(DayQuality(*before)), strict=True)
        for measure, (good, of), (good_before, of_before) in pairs:
            if of and of_before:
                yield FolderQuality(
                    folder_id=folder_id,
                    measure=measure,
                    good=good,
                    all=of,
                    good_before=good_before,
                    all_before=of_before,
                )


def _shares(day: DayQuality) -> tuple[tuple[int, int], ...]:
    return (day.cited_first, day.cited), (day.liked, day.liked + day.disliked), (day.cited, day.logs)


def worst(figures: Iterable[FolderQuality], min_fall: float) -> tuple[tuple[FolderQuality, ...], int]:
    """The falls that are least likely to be chance, and how many figures were compared."""
    tests, falls = 0, list[FolderQuality]()
    for figure in figures:
        tests += 1
        if fall(figure) >= min_fall:
            falls.append(figure)
    return tuple(sorted(falls, key=lambda figure: (chance(figure), figure.folder_id))[:REPORTED]), tests
