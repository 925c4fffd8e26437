"""A short run without violations, and one for each disabled correction, in which its counter must rise."""

import json
import subprocess
import sys
from typing import Any

import pytest


def chaos(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the report of a run, in a process of its own to isolate broken connections."""
    command = [sys.executable, "-m", "tests.chaos", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1:]
    assert last, done.stderr[-5000:]
    assert last[0].startswith("{"), done.stderr[-5000:]
    return done.returncode, json.loads(last[0])


def test_all_counters_are_zero_under_faults() -> None:
    status, report = chaos("--seed", "11", "--minutes", "0.75", "--fault-every", "1.5")
    assert status == 0, report
    assert report["injected"] >= 15
    assert report["logs_published"] > 500
    assert report["requests"] >= 3


@pytest.mark.parametrize(
    ("without", "kind", "counter"),
    [
        ("durable-ingest", "kill -9", "lost"),
        ("unique-records", "duplicates", "duplicated"),
        ("order-of-events", "duplicates", "diverged_folders"),
        ("durable-requests", "kill -9", "requests_without_one_end"),
    ],
)
def test_a_disabled_correction_raises_its_counter(without: str, kind: str, counter: str) -> None:
    arguments = ("--seed", "7", "--minutes", "0.6", "--fault-every", "2", "--patience", "40")
    status, report = chaos(*arguments, "--only", kind, "--without", without)
    assert status == 1, report
    assert report[counter] > 0, report
