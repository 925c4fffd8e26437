"""The contract of the port, checked for every launcher and for the fake of either kind."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from foldtune.events import TrainingJob
from foldtune.settings import Settings
from foldtune.testing import MemoryObjectStore
from launchers.batch.launcher import BatchLauncher
from launchers.port import Ending, Launcher, Run, RunOutcome
from tests.batch_service import BatchService
from tests.fakes.launcher import SUCCESS, FakeLauncher

from .conftest import MakeLocal

HANG = "import time; time.sleep(60)"
PROGRAMS = {
    "success": ("", SUCCESS),
    "refusal": ("raise SystemExit(64)", RunOutcome(ending=Ending.FAILED, announced=True)),
    "retryable": ("raise SystemExit(75)", RunOutcome(ending=Ending.FAILED, retryable=True)),
    "endless": (HANG, None),
}
Make = Callable[[str], Launcher]


@pytest.fixture(params=["fake", "fake-detached", "local", "batch"])
def make(request: pytest.FixtureRequest, make_local: MakeLocal, store: MemoryObjectStore) -> Iterator[Make]:
    """Makes a launcher whose next run ends in the named way."""
    services: list[BatchService] = []

    def launcher(kind: str) -> Launcher:
        program, outcome = PROGRAMS[kind]
        if request.param == "batch":
            services.append(BatchService((sys.executable, "-c", program, "Ref::job_uri")))
            client: Any = services[-1]
            return BatchLauncher(Settings(), store, client)
        if request.param == "local":
            return make_local(program)
        return FakeLauncher(outcome, detached=request.param == "fake-detached")

    yield launcher
    for service in services:
        service.close()


def ended(launcher: Launcher, run: Run) -> RunOutcome:
    """Wait for the outcome of a run."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (status := launcher.poll(run)) and status.outcome:
            return status.outcome
        time.sleep(0.01)
    raise AssertionError("the run did not end")


@pytest.fixture
def run(job: TrainingJob) -> Run:
    """The first attempt at the job."""
    return Run(job, "s3://memory/jobs/j/job.json", 1)


def test_a_successful_run(make: Make, run: Run) -> None:
    launcher = make("success")
    launcher.submit(run)
    assert ended(launcher, run).ending is Ending.SUCCEEDED


def test_a_refused_job_is_not_run_again(make: Make, run: Run) -> None:
    launcher = make("refusal")
    launcher.submit(run)
    outcome = ended(launcher, run)
    assert (outcome.ending, outcome.final, outcome.announced) == (Ending.FAILED, True, True)


def test_a_job_that_asks_for_a_retry_is_retryable(make: Make, run: Run) -> None:
    launcher = make("retryable")
    launcher.submit(run)
    outcome = ended(launcher, run)
    assert (outcome.ending, outcome.final, outcome.retryable) == (Ending.FAILED, False, True)


@pytest.mark.parametrize(("how", "ending"), [("cancel", Ending.CANCELLED), ("interrupt", Ending.INTERRUPTED)])
def test_a_run_can_be_terminated(make: Make, run: Run, how: str, ending: Ending) -> None:
    launcher = make("endless")
    launcher.submit(run)
    status = launcher.poll(run)
    assert status
    assert status.outcome is None
    getattr(launcher, how)(run)
    assert ended(launcher, run).ending is ending


def test_an_outcome_does_not_change(make: Make, run: Run) -> None:
    launcher = make("success")
    launcher.submit(run)
    outcome = ended(launcher, run)
    launcher.cancel(run)
    launcher.interrupt(run)
    status = launcher.poll(run)
    assert status
    assert status.outcome == outcome


def test_a_run_that_was_not_submitted_has_no_status(make: Make, run: Run) -> None:
    launcher = make("success")
    assert launcher.poll(run) is None
    assert not launcher.find(run)


@pytest.mark.parametrize("make", ["fake-detached", "batch"], indirect=True)
def test_a_detached_run_is_found_when_its_record_was_lost(make: Make, run: Run, store: MemoryObjectStore) -> None:
    launcher = make("endless")
    launcher.submit(run)
    for key in store.list("jobs/"):
        store.delete(key)
    if isinstance(launcher, FakeLauncher):
        launcher.forget()
    assert launcher.poll(run) is None
    assert launcher.find(run)
    assert launcher.poll(run)
