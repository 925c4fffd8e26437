"""A short run that must come out right, and one for each correction switched off that must not."""

from pathlib import Path

import pytest

from tests.chaos.run import Plan, run


def test_nothing_is_lost_doubled_or_left_without_an_end(tmp_path: Path) -> None:
    report = run(Plan(seed=11, seconds=45, fault_every=1.5), tmp_path)
    assert report.broken == {}, report
    assert sum(report.faults.values()) >= 15
    assert report.logs_published > 500
    assert report.requests > 5


@pytest.mark.parametrize(
    ("without", "kinds", "counter"),
    [
        ("durable-ingest", ("kill -9",), "lost"),
        ("unique-records", ("duplicates",), "duplicated"),
        ("order-of-events", ("duplicates",), "diverged_folders"),
        ("durable-requests", ("kill -9",), "requests_without_one_end"),
    ],
)
def test_the_harness_notices_a_correction_that_is_missing(
    tmp_path: Path, without: str, kinds: tuple[str, ...], counter: str
) -> None:
    report = run(Plan(seed=7, seconds=30, fault_every=2, kinds=kinds, without=without, patience=40), tmp_path)
    assert counter in report.broken, report
