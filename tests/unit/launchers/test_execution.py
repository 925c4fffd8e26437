"""Once per request, whatever is delivered again and whoever dies."""

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldtune.events import FineTuneStatus, State, TrainingJob, now
from foldtune.object_store import ObjectStore
from foldtune.testing import MemoryObjectStore
from launchers.execution import Execution
from launchers.job_consumer import InFlightOffsets
from launchers.ledger import Ledger
from launchers.ownership import DEAD_SECONDS, this_process
from launchers.port import Ending, Launcher, LaunchError, Run, RunOutcome, job_segment
from tests.fakes.launcher import FakeLauncher

RETRY = RunOutcome(ending=Ending.FAILED, retryable=True, reasons=("out of luck",), log_uri="s3://memory/a.log")
REFUSED = RunOutcome(ending=Ending.FAILED, announced=True)
FOREIGN = this_process().model_copy(update={"host": "elsewhere"})


class Bench:
    """A store, a clock, and what was published."""

    def __init__(self, store: ObjectStore, job: TrainingJob) -> None:
        self.store = store
        self.job = job
        self.statuses: list[FineTuneStatus] = []
        self.seconds = 0.0

    def execution(self, launcher: Launcher, *, max_attempts: int = 2) -> Execution:
        return Execution(
            self.job,
            store=self.store,
            launcher=launcher,
            publish=self.statuses.append,
            max_attempts=max_attempts,
            clock=lambda: self.seconds,
        )

    def finish(self, execution: Execution) -> None:
        for _ in range(20):
            if execution.advance(may_start=True):
                return
            self.seconds += 10
        raise AssertionError("the job was not settled")

    @property
    def states(self) -> list[State]:
        return [status.state for status in self.statuses]


@pytest.fixture
def bench(store: MemoryObjectStore, job: TrainingJob) -> Bench:
    return Bench(store, job)


def test_a_success_is_on_record(bench: Bench, job: TrainingJob) -> None:
    bench.finish(bench.execution(launcher := FakeLauncher()))
    prefix = f"jobs/{job_segment(job)}/"
    assert TrainingJob.model_validate_json(bench.store.get(f"{prefix}job.json")) == job
    assert json.loads(bench.store.get(f"{prefix}attempt-1.outcome.json"))["ending"] == "succeeded"
    assert launcher.submitted[0].job_uri == f"s3://memory/{prefix}job.json"
    assert bench.states == [State.SUBMITTED]


def test_delivered_again_after_the_end_nothing_starts(bench: Bench) -> None:
    launcher = FakeLauncher()
    bench.finish(bench.execution(launcher))
    bench.finish(bench.execution(launcher))
    assert len(launcher.submitted) == 1


def test_delivered_twice_at_once_one_starts(bench: Bench) -> None:
    launcher = FakeLauncher(None)
    first, second = bench.execution(launcher), bench.execution(launcher)
    assert not first.advance(may_start=True)
    for _ in range(5):
        assert not second.advance(may_start=True)
        bench.seconds += 10
    assert second.elsewhere
    launcher.end(launcher.submitted[0], RunOutcome(ending=Ending.SUCCEEDED))
    bench.finish(first)
    bench.finish(second)
    assert len(launcher.submitted) == 1


def test_retries_until_the_attempts_are_used_up(bench: Bench) -> None:
    bench.finish(bench.execution(launcher := FakeLauncher(RETRY, RETRY, RETRY)))
    assert [run.attempt for run in launcher.submitted] == [1, 2]
    assert bench.states == [State.SUBMITTED, State.SUBMITTED, State.FAILED]
    assert bench.statuses[-1].retryable
    assert bench.statuses[-1].reasons == ("out of luck",)
    assert bench.statuses[-1].log_uri == "s3://memory/a.log"


def test_what_the_trainer_refused_is_neither_retried_nor_said_twice(bench: Bench) -> None:
    bench.finish(bench.execution(launcher := FakeLauncher(REFUSED)))
    assert len(launcher.submitted) == 1
    assert bench.states == [State.SUBMITTED]


def test_an_interruption_uses_up_no_attempt(bench: Bench) -> None:
    launcher = FakeLauncher(None, RETRY, None)
    stopped = bench.execution(launcher)
    stopped.advance(may_start=True)
    stopped.interrupt()
    stopped.advance(may_start=False)
    assert not stopped.running
    following = bench.execution(launcher)
    following.advance(may_start=True)
    following.advance(may_start=True)
    assert [run.attempt for run in launcher.submitted] == [1, 2, 3]


def test_a_dead_owner_of_this_machine_is_followed_at_once(bench: Bench, job: TrainingJob) -> None:
    dead = this_process().model_copy(update={"process_started": 1.0})
    Ledger(bench.store, job, dead).claim(1)
    bench.execution(launcher := FakeLauncher(None)).advance(may_start=True)
    assert [run.attempt for run in launcher.submitted] == [2]


def test_an_owner_elsewhere_is_followed_only_after_a_long_silence(bench: Bench, job: TrainingJob) -> None:
    other = Ledger(bench.store, job, FOREIGN)
    other.claim(1)
    execution = bench.execution(launcher := FakeLauncher(None))
    for _ in range(20):
        other._store.put(f"jobs/{job_segment(job)}/attempt-1.heartbeat", str(bench.seconds).encode())
        execution.advance(may_start=True)
        bench.seconds += 10
    assert not launcher.submitted
    bench.seconds += DEAD_SECONDS
    execution.advance(may_start=True)
    assert [run.attempt for run in launcher.submitted] == [2]


def test_what_a_function_has_started_is_left_to_it(bench: Bench, job: TrainingJob) -> None:
    gone = FOREIGN.model_copy(update={"until": now() - timedelta(days=1)})
    Ledger(bench.store, job, gone).claim(1)
    execution = bench.execution(launcher := FakeLauncher())
    for _ in range(5):
        assert not execution.advance(may_start=True)
        bench.seconds += DEAD_SECONDS
    assert not launcher.submitted


def test_owners_that_keep_dying_use_the_attempts_up(bench: Bench, job: TrainingJob) -> None:
    dead = this_process().model_copy(update={"process_started": 1.0})
    for number in (1, 2):
        Ledger(bench.store, job, dead).claim(number)
    bench.finish(bench.execution(launcher := FakeLauncher()))
    assert not launcher.submitted
    assert bench.states == [State.FAILED]
    assert bench.statuses[0].reasons == ("the launcher of attempt 2 died",)


def test_cancelled_before_and_while_it_runs(bench: Bench) -> None:
    early = bench.execution(launcher := FakeLauncher(None))
    early.cancel()
    assert early.advance(may_start=True)
    assert not launcher.submitted
    late = bench.execution(launcher)
    late.advance(may_start=True)
    late.cancel()
    bench.finish(late)
    assert len(launcher.submitted) == 1
    assert bench.states == [State.SUBMITTED]


def test_without_a_place_nothing_starts(bench: Bench) -> None:
    assert not bench.execution(launcher := FakeLauncher()).advance(may_start=False)
    assert not launcher.submitted


def test_a_launch_that_fails_is_an_attempt(bench: Bench) -> None:
    class Broken(FakeLauncher):
        def submit(self, run: Run) -> None:
            raise LaunchError(run.name, "no disk")

    bench.finish(bench.execution(Broken()))
    assert bench.states[-1] is State.FAILED
    assert "no disk" in bench.statuses[-1].reasons[0]


class LosesAnswers(MemoryObjectStore):
    """Writes, and then says that something was there already, as a retried request does."""

    def put_if_absent(self, key: str, content: bytes) -> bool:
        super().put_if_absent(key, content)
        return False


def test_a_claim_whose_answer_was_lost_is_known_again(job: TrainingJob) -> None:
    bench = Bench(LosesAnswers(), job)
    bench.finish(bench.execution(launcher := FakeLauncher()))
    assert len(launcher.submitted) == 1


class FailsEachWriteOnce(MemoryObjectStore):
    """Every key's first write fails before anything is written."""

    def __init__(self) -> None:
        super().__init__()
        self._failed: set[str] = set()

    def put(self, key: str, content: bytes) -> None:
        if key not in self._failed:
            self._failed.add(key)
            raise ConnectionError(key)
        super().put(key, content)


def test_any_step_can_be_taken_again(job: TrainingJob) -> None:
    bench = Bench(FailsEachWriteOnce(), job)
    execution = bench.execution(launcher := FakeLauncher())
    failures = 0
    for _ in range(20):
        try:
            if execution.advance(may_start=True):
                break
        except ConnectionError:
            failures += 1
        bench.seconds += 10
    assert failures == 2
    assert len(launcher.submitted) == 1


@given(st.permutations(range(6)))
def test_offsets_are_committed_without_a_gap(order: list[int]) -> None:
    offsets = InFlightOffsets()
    assert all(offsets.start(number) for number in range(6))
    done: set[int] = set()
    position = 0
    for offset in order:
        offsets.settle(offset)
        done.add(offset)
        expected = next(number for number in range(7) if number not in done)
        if (committable := offsets.committable()) is not None:
            position = committable
            offsets.committed(position)
        assert position == expected


def test_an_event_delivered_again_is_not_taken_twice() -> None:
    offsets = InFlightOffsets()
    assert offsets.start(3)
    assert not offsets.start(3)
