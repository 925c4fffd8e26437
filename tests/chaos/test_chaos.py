"""A short run of all faults without violations, and sabotaged ones, in which the counters must rise."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.chaos.run import Counters
from tests.chaos.sabotage import SABOTAGES


def chaos(*arguments: str) -> tuple[dict[str, Any], str]:
    """The report of a run and the end of its errors, in a process of its own to isolate broken connections."""
    command = [sys.executable, "-m", "tests.chaos", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1:]
    assert last, done.stderr[-5000:]
    assert last[0].startswith("{"), done.stderr[-5000:]
    report: dict[str, Any] = json.loads(last[0])
    assert done.returncode == int(any(report[counter] for counter in Counters.__dataclass_fields__))
    return report, done.stderr[-5000:]


def test_all_counters_are_zero_under_faults() -> None:
    report, errors = chaos("--seed", "11", "--minutes", "1", "--fault-every", "1.5")
    assert {counter: report[counter] for counter in Counters.__dataclass_fields__ if report[counter]} == {}, errors
    assert min(report["faults"].values()) >= 2, report
    assert report["injected"] >= 40
    assert report["logs_published"] > 500
    assert report["requests"] >= 2


def test_every_counter_has_a_sabotage() -> None:
    assert sorted(sabotage.counter for sabotage in SABOTAGES) == sorted(Counters.__dataclass_fields__)


# Several in one run, as far as none hides another, and only those that a short run surely meets; ``--sabotage`` runs
# each by itself.
@pytest.mark.matrix
@pytest.mark.parametrize(
    "names",
    [
        ("durable-ingest", "durable-requests", "durable-dead-letters"),
        ("unique-records", "broker-time"),
        ("order-of-events",),
        ("durable-snapshots",),
    ],
    ids=" ".join,
)
def test_a_disabled_correction_raises_its_counter(names: tuple[str, ...]) -> None:
    sabotages = [sabotage for sabotage in SABOTAGES if sabotage.without in names]
    kinds = sorted({kind for sabotage in sabotages for kind in sabotage.kinds})
    options = [f"--only={kind}" for kind in kinds] + [f"--without={name}" for name in names]
    report, _ = chaos("--seed", "7", "--minutes", "0.6", "--fault-every", "2", "--patience", "40", *options)
    assert all(report[sabotage.counter] > 0 for sabotage in sabotages), report
