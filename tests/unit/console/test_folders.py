"""Folders over time, and a sample of one to read."""

from datetime import date, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.context import Services
from console.pages.time_bars import bars_of, newest_days
from foldtune.settings import Settings
from tests.unit.api.conftest import MemoryPublisher
from tests.unit.api.test_folders import day, fill, folders, stats
from tests.unit.api.test_previews import Workers, shown_history, workers

from .conftest import browser_of

__all__ = ["folders", "workers"]
LAST = date(2026, 6, 1)


def a_day(ago: int, *, logs: int = 1, **labels: int) -> dict[str, Any]:
    others = dict.fromkeys(("examples", "cited", "cited_first", "liked", "disliked"), 0)
    return {"day": str(LAST - timedelta(days=ago)), "logs": logs, "labels": labels, **others}


@pytest.mark.parametrize(
    ("oldest", "each", "count"), [(0, 1, 1), (59, 1, 60), (60, 7, 9), (419, 7, 60), (420, 28, 16), (30_000, 501, 60)]
)
def test_days_are_as_many_bars_as_there_is_room_for(oldest: int, each: int, count: int) -> None:
    days = [a_day(ago, logs=2, cited=3) for ago in sorted({oldest, oldest // 2, 0}, reverse=True)]
    bars = bars_of(days, ["cited"])
    assert bars
    assert (bars.days, len(bars.bars)) == (each, count)
    assert sum(bar.counts["logs"] for bar in bars.bars) == 2 * len(days)
    assert sum(bar.labels["cited"] for bar in bars.bars) == 3 * len(days)
    assert bars.bars[-1].begins == LAST - timedelta(days=each - 1)
    assert bars.bars[0].begins <= date.fromisoformat(days[0]["day"])


def test_the_first_days_that_there_are_have_a_bar() -> None:
    for ago in range(0, 60, 7):
        last = LAST - timedelta(days=ago)
        bars = bars_of([a_day(0) | {"day": str(day)} for day in (date.min, last)], ["cited"])
        assert bars
        assert (bars.bars[0].begins, bars.bars[0].counts["logs"]) == (date.min, 1)


def test_labels_stand_on_each_other_and_the_highest_bar_fills_the_picture() -> None:
    bars = bars_of([a_day(1, cited=6, liked=2), a_day(0, cited=4)], ["cited", "liked", "corrected"])
    assert bars
    assert bars.top == 8
    assert bars.labels == {"cited": "M0.1 25h.8V100h-.8zM1.1 50h.8V100h-.8z", "liked": "M0.1 0h.8V25h-.8z"}
    assert bars_of([], ["cited"]) is None


def test_growth_is_of_the_days_before_the_figures_and_no_others() -> None:
    folder = {"as_of": "2026-06-01T12:00:00Z", "days": [a_day(30, logs=7), a_day(29, logs=5), a_day(0, logs=10)]}
    assert newest_days(folder, 30) == (15, "M0.1 50h.8V100h-.8zM29.1 0h.8V100h-.8z")
    assert newest_days(folder | {"days": []}, 30) == (0, "")


def test_a_folder_says_how_fresh_and_good_its_logs_are(services: Services, settings: Settings, folders: Any) -> None:
    fill(folders, stats(earlier=day(-1, logs=100)), stats("new", days=(), newest_log_at=None))
    browser = browser_of(services, settings, "viewer")
    page = browser.get("/console/folders/handbook").text
    assert " d " in page.partition("Newest log")[2].partition("</dd>")[0]
    assert "75\u00a0%" in page.partition("Best passage first")[2].partition("</dd>")[0]
    assert "Not shown: 100 logs" in page
    assert "Read ten questions" not in page
    assert "+10" in browser.get("/console/folders").text
    assert browser.get("/console/folders/new").status_code == 200


def test_a_sample_is_read_by_those_who_may_and_the_audit_says_so(
    services: Services, settings: Settings, workers: Workers, folders: Any, publisher: MemoryPublisher
) -> None:
    workers.add(*shown_history(0))
    fill(folders, stats("f"))
    reading: TestClient = browser_of(services, settings, "privacy")
    page = reading.get("/console/folder-sample?folder=f").text
    assert "<q>" in page
    assert "<html" in page
    [entry] = publisher.audited
    assert (entry.action, entry.folders) == ("preview.read", ("f",))
    assert "<html" not in reading.get("/console/folder-sample?folder=f", headers={"hx-request": "true"}).text
    assert browser_of(services, settings, "viewer").get("/console/folder-sample?folder=f").status_code == 403
    assert "Read ten questions" in browser_of(services, settings, "anybody").get("/console/folders/f").text
