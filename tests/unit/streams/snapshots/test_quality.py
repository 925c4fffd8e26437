"""Whether a fall of quality may be chance: compared with scipy, and over the days of a folder."""

import random
from datetime import date, timedelta
from typing import Any

import pytest
from scipy.stats import hypergeom

from foldtune.events import FolderDay, FolderQuality
from streams.snapshots import quality
from streams.snapshots.folder_stats import Figures, Summary
from streams.snapshots.quality import DayQuality

TODAY = date(2026, 3, 1)


def figure(good: int, of: int, good_before: int, of_before: int) -> FolderQuality:
    return FolderQuality(
        folder_id="f", measure="liked", good=good, all=of, good_before=good_before, all_before=of_before
    )


def test_the_probability_is_that_of_fishers_exact_test() -> None:
    draw = random.Random(0)
    for _ in range(100):
        of, before = draw.randint(1, 300), draw.randint(1, 3000)
        good, good_before = draw.randint(0, of), draw.randint(0, before)
        expected = hypergeom.cdf(good, of + before, good + good_before, of)
        assert quality.chance(figure(good, of, good_before, before)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("numbers", "chance"), [((0, 0, 5, 9), 1.0), ((1, 2, 0, 0), 1.0), ((0, 5, 0, 9), 1.0), ((5, 5, 9, 9), 1.0)]
)
def test_where_there_is_nothing_to_compare_nothing_has_fallen(
    numbers: tuple[int, int, int, int], chance: float
) -> None:
    assert quality.chance(figure(*numbers)) == chance
    assert quality.fall(figure(*numbers)) == 0.0


def test_large_counts_take_no_time_and_do_not_overflow() -> None:
    assert quality.chance(figure(400_000, 1_000_000, 9_000_000, 10_000_000)) == 0.0
    assert 0.4 < quality.chance(figure(500_000, 1_000_000, 5_000_000, 10_000_000)) < 0.6


@pytest.mark.parametrize("good", [498_500, 499_500, 500_500])
def test_of_large_counts_the_probability_is_nearly_the_same(good: int) -> None:
    expected = hypergeom.cdf(good, 11_000_000, 5_500_000, 1_000_000)
    found = quality.chance(figure(good, 1_000_000, 5_500_000 - good, 10_000_000))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("numbers", "chance"),
    [
        ((2**61, 2**62, 2**62, 2**63 - 1), 0.5),
        ((0, 2**62, 2**62, 2**62), 0.0),
        ((2**63 - 1, 2**63 - 1, 1, 2**63 - 1), 1.0),
        # More good ones than there are.
        ((5, 2, 3, 4), 1.0),
        ((9, 2, 9, 4), 1.0),
    ],
)
def test_counts_that_cannot_be_are_compared_at_once(numbers: tuple[int, int, int, int], chance: float) -> None:
    assert quality.chance(figure(*numbers)) == pytest.approx(chance, abs=1e-6)


def day(before_today: int, **counts: Any) -> FolderDay:
    return FolderDay(day=TODAY - timedelta(days=before_today), **counts)


def test_the_last_days_are_compared_with_those_before_them() -> None:
    days = (
        day(35, logs=1000, cited=1000, cited_first=1000, liked=1000),
        day(34, logs=100, cited=90, cited_first=80, liked=7, disliked=3),
        day(7, logs=100, cited=90, cited_first=80),
        day(6, logs=10, cited=5, cited_first=4, liked=1, disliked=2),
        day(0, logs=10, cited=5, cited_first=4),
        # Of a clock that is ahead.
        day(-1, logs=50),
    )
    kept = Summary.of(Figures(days=days))
    assert list(kept.days) == [DayQuality.of(each) for each in days]
    found = {each.measure: each for each in quality.compared({"f": kept.days}, TODAY, window=7, baseline=28)}
    assert {name: (each.good, each.all, each.good_before, each.all_before) for name, each in found.items()} == {
        "cited_first": (8, 10, 160, 180),
        "liked": (1, 3, 7, 10),
        "answered": (10, 20, 180, 200),
    }


def test_of_many_folders_the_falls_that_are_least_likely_are_told_and_how_many_were_compared() -> None:
    figures = [
        FolderQuality(folder_id=f"f{number}", measure="liked", good=number, all=50, good_before=45, all_before=50)
        for number in range(51)
    ]
    worst, tests = quality.worst(figures, min_fall=0.05)
    assert ([each.folder_id for each in worst], tests) == (["f0", "f1", "f2"], 51)
    assert quality.worst(figures[44:], min_fall=0.05) == ((), 7)
