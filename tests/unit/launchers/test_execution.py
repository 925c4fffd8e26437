"""One run per request, whatever is redelivered and whoever dies: for attached and detached launchers."""

import inspect
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldtune.events import QUEUEING_TIME, FineTuneStatus, State, TrainingJob, now
from foldtune.in_flight import InFlightOffsets
from foldtune.object_store import ObjectStore
from foldtune.testing import MemoryObjectStore
from launchers.execution import OVERDUE, Execution, Phase
from launchers.heartbeats import DEAD_SECONDS, GIVE_UP_SECONDS, HeartbeatOwnership, owner_is_dead, this_process
from launchers.ledger import Ledger
from launchers.ownership import LEASE, MAX_SKEW, LeaseOwnership
from launchers.periodic import boottime
from launchers.port import Ending, Launcher, LaunchError, Run, RunOutcome, job_segment
from tests.fakes.launcher import SUCCESS, FakeLauncher

from .conftest import MOMENT

RETRY = RunOutcome(ending=Ending.FAILED, retryable=True, reasons=("out of luck",), log_uri="s3://memory/a.log")
REFUSED = RunOutcome(ending=Ending.FAILED, announced=True)
FOREIGN = this_process().model_copy(update={"host": "elsewhere"})


class Bench:
    """An object store, a clock, and the published statuses."""

    def __init__(self, store: ObjectStore, job: TrainingJob) -> None:
        self.store = store
        self.job = job
        self.statuses: list[FineTuneStatus] = []
        self.seconds = 0.0
        # By this machine's own clock, where it differs.
        self.drift = 0.0

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, self.job.request.model, self.job.request.request_id)

    @property
    def time(self) -> datetime:
        return MOMENT + timedelta(seconds=self.seconds)

    @property
    def elapsed(self) -> float:
        return self.seconds + self.drift

    def execution(
        self,
        launcher: Launcher,
        *,
        max_attempts: int = 2,
        request_ended: Callable[[], bool] = lambda: False,
        base_model_problem: Callable[[], str | None] = lambda: None,
    ) -> Execution:
        heartbeats = HeartbeatOwnership(self.ledger, lambda: self.seconds)
        lease = LeaseOwnership(launcher.submit_timeout, clock=lambda: self.time, elapsed=lambda: self.elapsed)
        return Execution(
            self.job,
            ledger=self.ledger,
            ownership=lease if launcher.detached else heartbeats,
            launcher=launcher,
            report=self.statuses.append,
            max_attempts=max_attempts,
            request_ended=request_ended,
            base_model_problem=base_model_problem,
            clock=lambda: self.seconds,
            wall_clock=lambda: self.time,
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


@pytest.fixture(params=[False, True], ids=["attached", "detached"])
def detached(request: pytest.FixtureRequest) -> bool:
    """Whether the runs outlive the launcher."""
    return bool(request.param)


@pytest.fixture
def bench(store: MemoryObjectStore, job: TrainingJob) -> Bench:
    return Bench(store, job)


def test_a_success_is_recorded(bench: Bench, job: TrainingJob, detached: bool) -> None:
    bench.finish(bench.execution(launcher := FakeLauncher(detached=detached)))
    prefix = f"jobs/{job_segment(job)}/"
    assert TrainingJob.model_validate_json(bench.store.get(f"{prefix}job.json")) == job
    assert json.loads(bench.store.get(f"{prefix}attempt-1.outcome.json"))["ending"] == "succeeded"
    assert launcher.submitted[0].job_uri == f"s3://memory/{prefix}job.json"
    assert bench.states == [State.SUBMITTED]


def test_a_job_redelivered_after_its_end_does_not_start(bench: Bench, detached: bool) -> None:
    launcher = FakeLauncher(detached=detached)
    bench.finish(bench.execution(launcher))
    bench.finish(bench.execution(launcher))
    assert len(launcher.submitted) == 1


def test_one_of_two_concurrent_deliveries_starts(bench: Bench) -> None:
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


def test_retries_until_the_attempts_are_used_up(bench: Bench, detached: bool) -> None:
    bench.finish(bench.execution(launcher := FakeLauncher(RETRY, RETRY, RETRY, detached=detached)))
    assert [run.attempt for run in launcher.submitted] == [1, 2]
    assert bench.states == [State.SUBMITTED, State.SUBMITTED, State.FAILED]
    assert bench.statuses[-1].retryable
    assert bench.statuses[-1].reasons == ("out of luck",)
    assert bench.statuses[-1].log_uri == "s3://memory/a.log"


def test_a_refusal_of_the_trainer_is_neither_retried_nor_reported_again(bench: Bench, detached: bool) -> None:
    bench.finish(bench.execution(launcher := FakeLauncher(REFUSED, detached=detached)))
    assert len(launcher.submitted) == 1
    assert bench.states == [State.SUBMITTED]


def test_an_interruption_uses_up_no_attempt(bench: Bench, detached: bool) -> None:
    launcher = FakeLauncher(None, RETRY, None, detached=detached)
    stopped = bench.execution(launcher)
    stopped.advance(may_start=True)
    stopped.interrupt()
    stopped.advance(may_start=False)
    assert not stopped.running
    following = bench.execution(launcher)
    following.advance(may_start=True)
    following.advance(may_start=True)
    assert [run.attempt for run in launcher.submitted] == [1, 2, 3]


def test_a_dead_owner_on_this_machine_is_replaced_at_once(bench: Bench, job: TrainingJob) -> None:
    dead = this_process().model_copy(update={"process_ticks": 1, "process_started": 1.0})
    bench.ledger.claim(1, dead)
    bench.execution(launcher := FakeLauncher(None)).advance(may_start=True)
    assert [run.attempt for run in launcher.submitted] == [2]


def test_an_owner_elsewhere_is_replaced_after_a_long_silence(bench: Bench, job: TrainingJob) -> None:
    bench.ledger.claim(1, FOREIGN)
    execution = bench.execution(launcher := FakeLauncher(None))
    for _ in range(20):
        bench.store.put(f"jobs/{job_segment(job)}/attempt-1.heartbeat", str(bench.seconds).encode())
        execution.advance(may_start=True)
        bench.seconds += 10
    assert not launcher.submitted
    # A judge that was suspended itself, perhaps with the owner, waits once more.
    bench.seconds += DEAD_SECONDS
    execution.advance(may_start=True)
    assert not launcher.submitted
    for _ in range(int(DEAD_SECONDS / 10) + 1):
        bench.seconds += 10
        execution.advance(may_start=True)
    assert [run.attempt for run in launcher.submitted] == [2]


def test_an_attached_launcher_ignores_expired_leases(bench: Bench, job: TrainingJob) -> None:
    gone = FOREIGN.model_copy(update={"until": now() - timedelta(days=1)})
    bench.ledger.claim(1, gone)
    execution = bench.execution(launcher := FakeLauncher())
    for _ in range(5):
        assert not execution.advance(may_start=True)
        bench.seconds += DEAD_SECONDS
    assert not launcher.submitted


def test_a_live_owner_is_not_dead_because_the_clock_was_set() -> None:
    alive = this_process()
    assert not owner_is_dead(alive.model_copy(update={"process_started": alive.process_started + 3600}))
    assert owner_is_dead(alive.model_copy(update={"process_ticks": 1}))
    # As a launcher of the former release wrote it.
    assert not owner_is_dead(alive.model_copy(update={"process_ticks": None}))
    assert owner_is_dead(alive.model_copy(update={"process_ticks": None, "process_started": 1.0}))


def test_owners_that_die_use_up_the_attempts(bench: Bench, job: TrainingJob) -> None:
    dead = this_process().model_copy(update={"process_ticks": 1, "process_started": 1.0})
    for number in (1, 2):
        bench.ledger.claim(number, dead)
    bench.finish(bench.execution(launcher := FakeLauncher()))
    assert not launcher.submitted
    assert bench.states == [State.FAILED]
    assert bench.statuses[0].reasons == ("the launcher of attempt 2 died",)


def test_a_job_is_cancelled_before_and_during_its_run(bench: Bench) -> None:
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


def test_a_base_model_that_cannot_be_trained_takes_no_machine(bench: Bench, detached: bool) -> None:
    launcher = FakeLauncher(detached=detached)
    bench.finish(bench.execution(launcher, base_model_problem=lambda: "hf://org/name: config.json is missing"))
    assert not launcher.submitted
    last = bench.statuses[-1]
    assert (last.state, last.retryable) == (State.FAILED, False)
    assert last.reasons == ("base_model cannot be trained: hf://org/name: config.json is missing",)


def test_a_job_whose_request_has_ended_is_not_started(bench: Bench, detached: bool) -> None:
    bench.finish(bench.execution(launcher := FakeLauncher(detached=detached), request_ended=lambda: True))
    assert not launcher.submitted
    assert State.FAILED not in bench.states


def test_a_request_that_ends_between_two_attempts_gets_no_second(bench: Bench, detached: bool) -> None:
    ended: list[bool] = []
    launcher = FakeLauncher(None, detached=detached)
    execution = bench.execution(launcher, request_ended=lambda: bool(ended))
    execution.advance()
    ended.append(True)
    launcher.end(launcher.submitted[0], RETRY)
    bench.finish(execution)
    assert [run.attempt for run in launcher.submitted] == [1]
    assert State.FAILED not in bench.states


def test_an_overdue_job_is_refused_by_every_launcher(bench: Bench, job: TrainingJob, detached: bool) -> None:
    bench.seconds = (2 * timedelta(seconds=job.max_seconds) + OVERDUE).total_seconds() + 1
    bench.finish(bench.execution(launcher := FakeLauncher(detached=detached)))
    assert not launcher.submitted
    assert bench.states == [State.FAILED]
    assert "to be launched by" in bench.statuses[0].reasons[0]


def test_days_in_the_queue_do_not_count(bench: Bench, detached: bool) -> None:
    bench.seconds = timedelta(days=6).total_seconds()
    bench.finish(bench.execution(launcher := FakeLauncher(detached=detached)))
    assert len(launcher.submitted) == 1


def test_a_clock_that_is_ahead_by_hours_refuses_no_job_in_the_queue(
    bench: Bench, job: TrainingJob, detached: bool
) -> None:
    attempts = 2 * timedelta(seconds=job.max_seconds)
    bench.seconds = (QUEUEING_TIME + attempts + timedelta(hours=1)).total_seconds()
    bench.finish(bench.execution(launcher := FakeLauncher(detached=detached)))
    assert len(launcher.submitted) == 1


def test_each_attempt_is_reported_as_running_once(bench: Bench, detached: bool) -> None:
    launcher = FakeLauncher(None, None, detached=detached)
    execution = bench.execution(launcher)
    for number in (0, 1):
        for _ in range(4):
            execution.advance()
            bench.seconds += 10
        launcher.end(launcher.submitted[number], RETRY)
    bench.finish(execution)
    assert bench.states == [*([State.SUBMITTED, State.RUNNING] * 2), State.FAILED]


def test_without_a_slot_nothing_starts(bench: Bench, detached: bool) -> None:
    assert not bench.execution(launcher := FakeLauncher(detached=detached)).advance(may_start=False)
    assert not launcher.submitted


def test_a_failed_launch_counts_as_an_attempt(bench: Bench, detached: bool) -> None:
    class Broken(FakeLauncher):
        def submit(self, run: Run) -> None:
            raise LaunchError(run.name, "no disk")

    bench.finish(bench.execution(Broken(detached=detached)))
    assert bench.states[-1] is State.FAILED
    assert "no disk" in bench.statuses[-1].reasons[0]


class LosesAnswers(MemoryObjectStore):
    """Writes, and then answers that the key exists, as after a retried request."""

    def put_if_absent(self, key: str, content: bytes) -> bool:
        super().put_if_absent(key, content)
        return False


def test_a_claim_whose_response_was_lost_is_recognized(job: TrainingJob, detached: bool) -> None:
    bench = Bench(LosesAnswers(), job)
    bench.finish(bench.execution(launcher := FakeLauncher(detached=detached)))
    assert len(launcher.submitted) == 1


class FailsEachWriteOnce(MemoryObjectStore):
    """Every key's first write fails before anything is written."""

    def __init__(self) -> None:
        super().__init__()
        self._failed: set[str] = set()

    def put(self, key: str, content: bytes) -> None:
        self._fail_once(key)
        super().put(key, content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        self._fail_once(key)
        return super().put_if_absent(key, content)

    def _fail_once(self, key: str) -> None:
        if key not in self._failed:
            self._failed.add(key)
            raise ConnectionError(key)


def test_any_step_can_be_retried(job: TrainingJob, detached: bool) -> None:
    bench = Bench(FailsEachWriteOnce(), job)
    execution = bench.execution(launcher := FakeLauncher(detached=detached))
    failures = 0
    for _ in range(20):
        try:
            if execution.advance(may_start=True):
                break
        except ConnectionError:
            failures += 1
        bench.seconds += 10
    # The job, the claim, the heartbeat of an attached run, the outcome.
    assert failures == (3 if detached else 4)
    assert len(launcher.submitted) == 1


# ── Detached runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def after_the_lease(bench: Bench) -> None:
    bench.seconds += (LEASE + MAX_SKEW).total_seconds() + 1


def test_a_detached_run_outlives_its_launcher(bench: Bench) -> None:
    launcher = FakeLauncher(None, detached=True)
    assert not bench.execution(launcher).advance()
    following = bench.execution(launcher)
    assert not following.advance()
    assert following.running
    launcher.end(launcher.submitted[0], SUCCESS)
    bench.finish(following)
    assert len(launcher.submitted) == 1
    assert bench.states == [State.SUBMITTED, State.RUNNING]


def test_a_submission_that_was_not_recorded_is_found_and_not_repeated(bench: Bench) -> None:
    launcher = FakeLauncher(None, detached=True)
    bench.execution(launcher).advance()
    launcher.forget()
    following = bench.execution(launcher)
    assert not following.advance()
    assert following.elsewhere
    after_the_lease(bench)
    assert not following.advance()
    assert following.running
    assert len(launcher.submitted) == 1


def test_a_lease_is_respected_and_then_its_attempt_taken_over(bench: Bench) -> None:
    launcher = FakeLauncher(detached=True)
    bench.ledger.claim(1, LeaseOwnership(launcher.submit_timeout, clock=lambda: bench.time).new_owner())
    execution = bench.execution(launcher)
    execution.advance()
    assert (execution.phase, launcher.submitted) == (Phase.ELSEWHERE, [])
    after_the_lease(bench)
    execution.advance(may_start=False)
    assert (execution.phase, launcher.submitted) == (Phase.WAITING, [])
    bench.finish(execution)
    assert [run.attempt for run in launcher.submitted] == [1]


def test_a_lease_that_ends_before_the_submission_submits_nothing(bench: Bench) -> None:
    launcher = FakeLauncher(detached=True)
    execution = bench.execution(launcher)

    def slow_report(status: FineTuneStatus) -> None:
        bench.statuses.append(status)
        after_the_lease(bench)

    execution._report = slow_report
    assert not execution.advance()
    assert (execution.phase, launcher.submitted) == (Phase.WAITING, [])


def test_a_clock_that_is_set_back_makes_no_lease_longer(bench: Bench) -> None:
    ownership = LeaseOwnership(timedelta(0), clock=lambda: bench.time, elapsed=lambda: bench.elapsed)
    ownership.new_owner()
    before = ownership.valid
    bench.drift = LEASE.total_seconds() + 1
    assert (before, ownership.valid) == (True, False)


@pytest.mark.parametrize("skew", [-MAX_SKEW, timedelta(0), MAX_SKEW])
def test_a_lease_holds_for_a_launcher_whose_clock_differs(bench: Bench, skew: timedelta) -> None:
    submit_timeout = timedelta(seconds=30)
    owner = LeaseOwnership(submit_timeout, clock=lambda: bench.time, elapsed=lambda: bench.elapsed)
    bench.ledger.claim(1, owner.new_owner())
    other = LeaseOwnership(submit_timeout, clock=lambda: bench.time + skew)
    [attempt] = bench.ledger.attempts()
    bench.seconds += LEASE.total_seconds() - 1
    assert owner.valid
    # What it began to submit at the last moment has taken effect.
    bench.seconds += submit_timeout.total_seconds()
    assert (owner.valid, other.owner_is_gone(attempt)) == (False, False)
    bench.seconds += 2 * MAX_SKEW.total_seconds() + 2
    assert other.owner_is_gone(attempt)


def test_of_many_that_take_over_one_claim_at_once_one_succeeds(bench: Bench) -> None:
    launcher = FakeLauncher(detached=True)
    bench.ledger.claim(1, LeaseOwnership(launcher.submit_timeout, clock=lambda: bench.time).new_owner())
    for taken in range(3):
        after_the_lease(bench)
        [attempt] = bench.ledger.attempts()
        assert attempt.takeovers == taken
        owners = [LeaseOwnership(launcher.submit_timeout, clock=lambda: bench.time).new_owner() for _ in range(8)]
        with ThreadPoolExecutor(len(owners)) as pool:
            won = list(pool.map(bench.ledger.take_over, [attempt] * len(owners), owners))
        assert won.count(True) == 1
        [current] = bench.ledger.attempts()
        assert current.owner == owners[won.index(True)]


def test_an_owner_that_was_suspended_does_not_respect_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    offset = 0.0
    monkeypatch.setattr("launchers.periodic.boottime", lambda: time.monotonic() + offset)
    ownership = HeartbeatOwnership(bench.ledger)
    ownership.hold(1)
    before = ownership.valid
    offset = GIVE_UP_SECONDS + 1
    heartbeat = bench.ledger.heartbeat(1)
    # The renewal is the first to run again.
    ownership._renew(1)
    offset = 0.0
    assert (before, ownership.valid) == (True, False)
    assert bench.ledger.heartbeat(1) == heartbeat
    ownership.release()


def test_suspended_time_counts() -> None:
    clock = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert clock <= boottime() <= clock + 1
    assert inspect.signature(HeartbeatOwnership).parameters["clock"].default is boottime
    assert inspect.signature(LeaseOwnership).parameters["elapsed"].default is boottime


def test_a_submission_too_old_to_be_found_has_failed(bench: Bench) -> None:
    launcher = FakeLauncher(detached=True, retries=True)
    launcher.findable = timedelta(days=6)
    bench.ledger.claim(1, LeaseOwnership(launcher.submit_timeout, clock=lambda: bench.time).new_owner())
    bench.seconds += timedelta(days=7).total_seconds()
    assert bench.execution(launcher).advance()
    assert not launcher.submitted
    assert bench.states == [State.FAILED]


@pytest.mark.parametrize("detached_service", [False, True])
def test_a_launcher_with_its_own_retries_has_one_attempt_on_the_ledger(bench: Bench, detached_service: bool) -> None:
    launcher = FakeLauncher(RETRY, detached=detached_service, retries=True)
    bench.finish(bench.execution(launcher))
    assert len(launcher.submitted) == 1
    assert bench.states == [State.SUBMITTED, State.FAILED]


def test_the_cancellation_of_a_detached_run_is_recorded(bench: Bench) -> None:
    launcher = FakeLauncher(None, detached=True)
    watching = bench.execution(launcher)
    watching.advance()
    bench.execution(launcher).cancel()
    bench.finish(watching)
    bench.finish(bench.execution(launcher))
    assert len(launcher.submitted) == 1
    assert bench.states == [State.SUBMITTED, State.CANCELLED, State.CANCELLED]


def test_a_detached_launcher_ignores_claims_of_processes(bench: Bench) -> None:
    bench.ledger.claim(1, this_process())
    execution = bench.execution(launcher := FakeLauncher(detached=True))
    for _ in range(5):
        assert not execution.advance()
        bench.seconds += DEAD_SECONDS
    assert execution.phase is Phase.OTHER_LAUNCHER
    assert not launcher.submitted


@given(st.permutations(range(6)))
def test_offsets_are_committed_in_order_without_gaps(order: list[int]) -> None:
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


def test_a_redelivered_event_is_in_flight_once() -> None:
    offsets = InFlightOffsets()
    assert offsets.start(3)
    assert not offsets.start(3)
