"""One job of AWS Batch per request, whatever is redelivered and wherever a call is killed."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from foldtune.events import REPORTING_TIME, FineTuneStatus, State, TrainingJob, now
from foldtune.settings import BatchSettings, Settings, WorkerSettings
from foldtune.testing import MemoryObjectStore
from launchers.batch.batch_job import BatchJob
from launchers.batch.dispatcher import Dispatcher
from launchers.batch.launcher import LISTED, BatchLauncher
from launchers.execution import OVERDUE
from launchers.heartbeats import this_process
from launchers.ledger import Ledger
from launchers.ownership import MAX_SKEW
from launchers.port import RunBusyError, job_segment
from tests.batch_service import BatchService, state_change
from tests.unit.launchers.conftest import MOMENT, make_job

# How long a function may take, and after which time its lease has expired.
TIMEOUT, EXPIRED = timedelta(seconds=120), timedelta(seconds=200) + MAX_SKEW


class Killed(BaseException):
    """The process is killed: nothing catches this."""


class Steps:
    """Counts the calls to infrastructure, and kills the process at one of them, before or after it takes effect."""

    def __init__(self) -> None:
        self.count = 0
        self.kill_at: tuple[int, bool] | None = None
        self.instead: Callable[[], None] | None = None

    def through(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if self.kill_at == (number, False):
                self._strike()
            try:
                return call(*arguments, **named)
            finally:
                if self.kill_at == (number, True):
                    self._strike()

        return counted

    def _strike(self) -> None:
        self.kill_at = None
        if self.instead is None:
            raise Killed
        self.instead()


class Through:
    """A proxy that counts the calls of some methods."""

    def __init__(self, behind: Any, steps: Steps, names: tuple[str, ...]) -> None:
        self._behind, self._steps, self._names = behind, steps, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._behind, name)
        return self._steps.through(found) if name in self._names else found


STORE = ("get", "find", "exists", "put", "put_if_absent", "list", "get_with_etag", "find_with_etag", "put_if_match")
CLIENT = ("submit_job", "describe_jobs", "terminate_job", "get_paginator")


class Bench:
    """Batch, the object store, the reports and the clock."""

    def __init__(self, **batch: Any) -> None:
        self.settings = Settings(batch=BatchSettings(**batch))
        self.store = MemoryObjectStore()
        self.batch = BatchService()
        self.statuses: list[FineTuneStatus] = []
        self.time = now()
        self.steps = Steps()

    def dispatcher(self) -> Dispatcher:
        """A dispatcher as a new process creates it."""
        store: Any = Through(self.store, self.steps, STORE)
        client: Any = Through(self.batch, self.steps, CLIENT)
        launcher = BatchLauncher(self.settings, store, client)
        return Dispatcher(self.settings, store, launcher, self.steps.through(self.statuses.append), lambda: self.time)

    def launch(self, job: TrainingJob) -> None:
        self.dispatcher().launch(job, self.time + TIMEOUT)

    def cancel(self, job: TrainingJob) -> None:
        self.dispatcher().cancel(job.request.model, job.request.request_id)

    def deliver(self, *events: dict[str, Any]) -> None:
        for event in events:
            self.dispatcher().state_changed(BatchJob.model_validate(event["detail"]))

    @property
    def only(self) -> dict[str, Any]:
        [job] = self.batch.jobs.values()
        return job

    @property
    def states(self) -> list[State]:
        return [status.state for status in self.statuses]

    def spent(self, model: str = "") -> float:
        from launchers.batch.budget import Spend

        [key] = self.store.list(f"spend/{model}")
        return sum(Spend.model_validate_json(self.store.get(key)).jobs.values())

    def jobs_spending(self) -> set[str]:
        """The jobs with a reserved or real cost."""
        from launchers.batch.budget import Spend

        return {
            name for key in self.store.list("spend/") for name in Spend.model_validate_json(self.store.get(key)).jobs
        }

    def disturbed(self, call: Callable[[], None], other: Callable[[], None], number: int) -> bool:
        """Make a call and another one in the middle of it; ``False`` where it has fewer steps."""
        self.steps.instead = other
        self.steps.count, self.steps.kill_at = 0, (number, True)
        call()
        return self.steps.kill_at is None

    def try_to_launch(self, job: TrainingJob) -> bool:
        """Launch; ``False`` where the job is busy."""
        try:
            self.launch(job)
        except RunBusyError:
            return False
        return True


@pytest.fixture
def bench() -> Bench:
    return Bench()


def until_killed(bench: Bench, call: Callable[[], None], number: int, after: bool) -> bool:
    """Make a call that is killed at one of its steps; ``False`` where it has fewer."""
    bench.steps.count, bench.steps.kill_at = 0, (number, after)
    try:
        call()
    except Killed:
        return True
    assert bench.steps.kill_at is not None
    bench.steps.kill_at = None
    return False


def kills(make: Callable[[], Bench], call: Callable[[Bench], None]) -> Iterator[Bench]:
    """A bench for every step at which a call can be killed."""
    for after in (False, True):
        for number in range(100):
            bench = make()
            if not until_killed(bench, lambda: call(bench), number, after):  # noqa: B023
                assert number > 4
                break
            yield bench


def killed_before_submitting(job: TrainingJob) -> Bench:
    """A bench whose launch was killed just before it would have submitted."""
    benches = kills(Bench, lambda bench: bench.launch(job))
    return next(bench for bench in benches if not bench.batch.jobs and bench.states == [State.SUBMITTED])


def test_a_job_is_submitted_as_the_definition_expects_it(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    job_uri = bench.only["parameters"]["job_uri"]
    assert TrainingJob.model_validate_json(bench.store.get(bench.store.key(job_uri))) == job
    assert bench.only["parameters"] == {"request_id": "r-1", "model": "support", "job_uri": job_uri}
    assert bench.only["retryStrategy"]["attempts"] == bench.settings.trainer.max_attempts
    assert bench.only["timeout"] == {"attemptDurationSeconds": 60}
    assert bench.states == [State.SUBMITTED]


def test_a_redelivered_job_is_submitted_once(bench: Bench, job: TrainingJob) -> None:
    for _ in range(3):
        bench.launch(job)
    assert len(bench.batch.jobs) == 1
    assert bench.states == [State.SUBMITTED]


def test_a_launch_killed_at_any_step_is_repaired_to_one_job(job: TrainingJob) -> None:
    points = 0
    for bench in kills(Bench, lambda bench: bench.launch(job)):
        points += 1
        bench.time += EXPIRED
        bench.launch(job)
        assert len(bench.batch.jobs) == 1
        assert State.SUBMITTED in bench.states
        bench.launch(job)
        assert len(bench.batch.jobs) == 1
        bench.batch.end(bench.only["jobId"], 0)
        bench.deliver(bench.batch.events[-1])
    assert points > 20


@pytest.mark.slow
def test_a_launch_killed_twice_at_any_steps_is_repaired_to_one_job(job: TrainingJob) -> None:
    for first in range(30):
        for second in range(30):
            bench = Bench()
            if not until_killed(bench, lambda: bench.launch(job), first, True):  # noqa: B023
                return
            bench.time += EXPIRED
            if not until_killed(bench, lambda: bench.launch(job), second, True):  # noqa: B023
                break
            bench.time += EXPIRED
            bench.launch(job)
            assert len(bench.batch.jobs) == 1
    raise AssertionError("a launch has fewer steps")


@pytest.mark.parametrize("taken_over", [False, True])
def test_one_of_two_concurrent_launches_submits(job: TrainingJob, taken_over: bool) -> None:
    """At every step of a call, another one is made and completed; no time passes meanwhile."""
    tried: list[bool] = []
    for number in range(100):
        bench = Bench()
        if taken_over:
            bench = killed_before_submitting(job)
            bench.time += EXPIRED

        def launch(bench: Bench = bench) -> None:
            tried.append(bench.try_to_launch(job))

        if not bench.disturbed(launch, launch, number):
            break
        assert len(bench.batch.jobs) == 1
    assert number > 10
    assert tried.count(False) > 5


def test_a_killed_launch_is_taken_over_only_after_its_lease(job: TrainingJob) -> None:
    bench = killed_before_submitting(job)
    for _ in range(3):
        with pytest.raises(RunBusyError):
            bench.launch(job)
        bench.time += timedelta(seconds=40)
    assert not bench.batch.jobs
    bench.time += timedelta(seconds=40) + MAX_SKEW
    bench.launch(job)
    assert len(bench.batch.jobs) == 1


def test_a_launch_past_its_deadline_submits_nothing(bench: Bench, job: TrainingJob) -> None:
    with pytest.raises(RunBusyError):
        bench.dispatcher().launch(job, bench.time)
    assert not bench.batch.jobs


def test_a_submission_that_batch_no_longer_lists_is_not_repeated(job: TrainingJob) -> None:
    bench = killed_before_submitting(job)
    bench.time += LISTED + EXPIRED
    bench.launch(job)
    assert not bench.batch.jobs
    assert (bench.statuses[-1].state, bench.statuses[-1].retryable) == (State.FAILED, True)


def test_an_overdue_job_is_refused(bench: Bench, job: TrainingJob) -> None:
    """The ledger of a new bucket is empty, but the topic may hold the jobs of years."""
    attempts = bench.settings.trainer.max_attempts * timedelta(seconds=job.max_seconds)
    bench.time = job.published_at + attempts + OVERDUE
    bench.launch(job)
    assert bench.states == [State.SUBMITTED]
    old = make_job("r-2")
    bench.time = old.published_at + attempts + OVERDUE + timedelta(seconds=1)
    for _ in range(2):
        bench.launch(old)
    assert len(bench.batch.jobs) == 1
    last = bench.statuses[-1]
    assert (last.request_id, last.state) == ("r-2", State.FAILED)
    assert last.reasons[0].startswith(f"job: published at {old.published_at.isoformat()}, to be launched by ")
    assert bench.jobs_spending() == {job_segment(job)}


def test_the_coordinator_times_out_before_a_job_is_overdue() -> None:
    """A job has the time at which its snapshot began."""
    assert WorkerSettings().snapshot_timeout + REPORTING_TIME < OVERDUE


def test_a_claim_of_a_process_is_not_taken_over(bench: Bench, job: TrainingJob) -> None:
    Ledger(bench.store, job.request.model, job.request.request_id).claim(1, this_process())
    bench.launch(job)
    assert not bench.batch.jobs


# ── Outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_success_is_recorded_and_reported_only_by_the_trainer(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    reserved = bench.spent()
    bench.batch.begin(bench.only["jobId"])
    bench.batch.end(bench.only["jobId"], 0)
    bench.deliver(*bench.batch.events)
    assert bench.states == [State.SUBMITTED, State.RUNNING]
    assert bench.spent() < reserved
    bench.launch(job)
    assert len(bench.batch.jobs) == 1


def test_a_failure_is_reported_with_reasons_and_log_url(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    bench.batch.begin(bench.only["jobId"])
    bench.batch.end(bench.only["jobId"], 137, statusReason="Essential container in task exited")
    bench.deliver(*bench.batch.events)
    last = bench.statuses[-1]
    assert (last.state, last.retryable) == (State.FAILED, True)
    assert last.reasons == (
        "the trainer was ended by SIGKILL, possibly out of memory",
        "AWS Batch: Essential container in task exited",
    )
    stream = bench.only["container"]["logStreamName"].replace("/", "$252F")
    assert last.log_url == (
        "https://us-east-1.console.aws.amazon.com/cloudwatch/home?region=us-east-1#logsV2:log-groups/log-group/"
        f"$252Faws$252Fbatch$252Fjob/log-events/{stream}"
    )


def test_each_running_attempt_is_reported_with_its_own_log_url(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    job_id = bench.only["jobId"]
    for _ in range(2):
        bench.batch.begin(job_id)
        stream = bench.only["container"]["logStreamName"].replace("/", "$252F")
        bench.deliver(bench.batch.events[-1])
        assert bench.statuses[-1].state is State.RUNNING
        assert (bench.statuses[-1].log_url or "").endswith(stream)
        bench.batch.end_attempt(job_id, 75)
    assert bench.states == [State.SUBMITTED, State.RUNNING, State.RUNNING]


def test_a_refusal_of_the_trainer_is_not_reported_again(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    bench.batch.end(bench.only["jobId"], 64)
    bench.deliver(bench.batch.events[-1])
    assert bench.states == [State.SUBMITTED]


def test_a_timeout_is_not_retryable(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    bench.batch.end(bench.only["jobId"], 137, statusReason="Job attempt duration exceeded timeout")
    bench.deliver(bench.batch.events[-1])
    assert bench.statuses[-1].reasons[0] == "exceeded max_seconds"
    assert not bench.statuses[-1].retryable


def test_duplicated_and_reordered_events_have_the_same_result(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    bench.batch.begin(bench.only["jobId"])
    bench.batch.end(bench.only["jobId"], 1)
    events = list(bench.batch.events)
    spent = set()
    for order in (events, events[::-1], events * 2, [*events[::-1], *events]):
        bench.deliver(*order)
        assert bench.statuses[-1].state is State.FAILED
        spent.add(bench.spent())
    # Running is reported once, and not after the end.
    assert bench.states.count(State.RUNNING) == 1
    assert len(spent) == 1


def test_an_event_whose_handling_was_killed_is_completed_by_its_redelivery(job: TrainingJob) -> None:
    def launched() -> Bench:
        bench = Bench()
        bench.launch(job)
        bench.batch.end(bench.only["jobId"], 1)
        return bench

    whole = launched()
    whole.deliver(whole.batch.events[-1])
    for bench in kills(launched, lambda bench: bench.deliver(bench.batch.events[-1])):
        bench.deliver(bench.batch.events[-1])
        assert bench.statuses[-1].state is State.FAILED
        assert bench.spent() == pytest.approx(whole.spent(), abs=0.001)


def test_a_redelivered_job_makes_up_for_a_lost_final_event(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    bench.batch.end(bench.only["jobId"], 1)
    bench.launch(job)
    assert bench.statuses[-1].state is State.FAILED
    bench.batch.jobs.clear()
    bench.launch(job)
    assert bench.statuses[-1].state is State.FAILED


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {}},
        {"parameters": {"request_id": "../../x", "model": "support", "job_uri": "s3://memory/x"}},
        {"parameters": {"request_id": "r-2", "model": "support", "job_uri": "s3://memory/x"}},
        {"jobName": "something-else"},
        {"jobId": "another"},
    ],
)
def test_jobs_that_are_not_on_the_ledger_are_ignored(bench: Bench, job: TrainingJob, change: dict[str, Any]) -> None:
    bench.launch(job)
    event = state_change(bench.only | {"status": "FAILED"} | change)
    before = {key: bench.store.get(key) for key in bench.store.list("")}
    bench.deliver(event)
    assert bench.states == [State.SUBMITTED]
    assert {key: bench.store.get(key) for key in bench.store.list("")} == before


# ── Cancellations ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_cancelled_before_its_launch_is_not_submitted(bench: Bench, job: TrainingJob) -> None:
    bench.cancel(job)
    bench.launch(job)
    assert not bench.batch.jobs
    assert bench.states == [State.CANCELLED]


def test_the_failure_of_a_cancelled_run_is_a_cancellation(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    bench.batch.begin(bench.only["jobId"])
    bench.cancel(job)
    assert bench.only["status"] == "FAILED"
    bench.deliver(*bench.batch.events)
    assert bench.states[-1] is State.CANCELLED
    assert State.FAILED not in bench.states


def test_a_cancellation_after_the_end_changes_nothing(bench: Bench, job: TrainingJob) -> None:
    bench.launch(job)
    bench.batch.end(bench.only["jobId"], 1)
    bench.cancel(job)
    bench.deliver(bench.batch.events[-1])
    assert bench.states[-1] is State.FAILED


def test_a_cancellation_at_any_step_of_a_launch_leaves_no_job_running(job: TrainingJob) -> None:
    for number in range(100):
        bench = Bench()
        if not bench.disturbed(lambda: bench.launch(job), lambda: bench.cancel(job), number):  # noqa: B023
            break
        assert all(one["status"] == "FAILED" for one in bench.batch.jobs.values())
    assert number > 10


def test_a_failure_at_any_step_of_a_cancellation_has_one_outcome(job: TrainingJob) -> None:
    for number in range(100):
        bench = Bench()
        bench.launch(job)

        def fail(bench: Bench = bench) -> None:
            if bench.only["status"] != "FAILED":
                bench.batch.end(bench.only["jobId"], 1)
            bench.deliver(bench.batch.events[-1])

        if not bench.disturbed(lambda: bench.cancel(job), fail, number):  # noqa: B023
            break
        fail()
        assert len({state for state in bench.states if state.terminal}) == 1
    assert number > 5


def test_a_cancellation_of_a_killed_launch_leaves_no_job_running(job: TrainingJob) -> None:
    for bench in kills(Bench, lambda bench: bench.launch(job)):
        bench.cancel(job)
        bench.time += EXPIRED
        bench.launch(job)
        assert all(one["status"] == "FAILED" for one in bench.batch.jobs.values())
        bench.deliver(*(event for event in bench.batch.events if event["detail"]["status"] == "FAILED"))
        assert bench.states[-1] is State.CANCELLED


# ── Budget ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_over_its_budget_is_refused_with_the_numbers() -> None:
    bench = Bench(hourly_prices={"small": 1.0, "large": 5.0}, max_job_dollars=9.9)
    bench.launch(make_job("r-1", max_seconds=3600))
    assert not bench.batch.jobs
    last = bench.statuses[-1]
    assert (last.state, last.retryable) == (State.FAILED, False)
    assert last.reasons == (
        "cost: 10.00 dollars (2 attempts of 3600 s at 5 dollars an hour), at most batch.max_job_dollars 9.9",
    )


def test_each_model_has_a_monthly_budget_of_reserved_then_real_costs() -> None:
    bench = Bench(hourly_prices={"any": 1.0}, max_month_dollars=5.0)
    jobs = [make_job(f"r-{number}", max_seconds=3600) for number in range(5)]
    for job in jobs[:3]:
        bench.launch(job)
    assert len(bench.batch.jobs) == 2
    refused = bench.statuses[-1]
    assert (refused.request_id, refused.state, refused.retryable) == ("r-2", State.FAILED, True)
    assert f"6.00 dollars for 'support' in {MOMENT:%Y-%m}" in refused.reasons[0]
    other = jobs[3].model_copy(update={"request": jobs[3].request.model_copy(update={"model": "sales"})})
    bench.launch(other)
    assert len(bench.batch.jobs) == 3
    first = next(iter(bench.batch.jobs))
    bench.batch.end(first, 0)
    bench.deliver(bench.batch.events[-1])
    bench.launch(jobs[4])
    assert len(bench.batch.jobs) == 4


def test_all_models_share_a_budget_and_a_refused_job_takes_nothing_of_any() -> None:
    bench = Bench(hourly_prices={"any": 1.0}, max_month_dollars=5.0, max_total_dollars=6.0)
    jobs = [make_job(f"r-{number}", max_seconds=3600) for number in range(4)]
    jobs = [
        job.model_copy(update={"request": job.request.model_copy(update={"model": f"model-{number}"})})
        for number, job in enumerate(jobs)
    ]
    for job in jobs:
        bench.launch(job)
    assert len(bench.batch.jobs) == 3
    refused = bench.statuses[-1]
    assert (refused.request_id, refused.state) == ("r-3", State.FAILED)
    assert f"8.00 dollars for all models in {MOMENT:%Y-%m}" in refused.reasons[0]
    assert bench.spent("_all") == 6.0
    assert bench.spent("model-3") == 0.0
    bench.batch.end(next(iter(bench.batch.jobs)), 0)
    bench.deliver(bench.batch.events[-1])
    assert bench.spent("_all") < 6.0


def test_a_refused_job_stays_refused_when_redelivered() -> None:
    bench = Bench(hourly_prices={"any": 1.0}, max_month_dollars=1.0)
    bench.launch(job := make_job("r-1", max_seconds=3600))
    bench.settings = Settings()
    bench.launch(job)
    assert not bench.batch.jobs


def test_concurrent_reservations_are_all_counted() -> None:
    """At every step of one launch, another one of the same model is made and completed."""
    for number in range(100):
        bench = Bench(hourly_prices={"any": 1.0}, max_month_dollars=5.0)
        first, second, third = (make_job(f"r-{one}", max_seconds=3600) for one in range(3))
        bench.launch(first)
        if not bench.disturbed(lambda: bench.launch(second), lambda: bench.launch(third), number):  # noqa: B023
            break
        assert len(bench.batch.jobs) == 2
        assert bench.spent() == 4.0
    assert number > 10


def test_the_reservation_of_a_cancelled_request_is_released(job: TrainingJob) -> None:
    def cancelled() -> Bench:
        bench = killed_before_submitting(job)
        assert bench.spent() > 0
        bench.cancel(job)
        bench.time += EXPIRED
        return bench

    for bench in kills(cancelled, lambda bench: bench.launch(job)):
        bench.time += EXPIRED
        bench.launch(job)
        assert bench.states[-1] is State.CANCELLED
        assert bench.spent() == 0.0


def test_a_job_that_batch_refuses_has_failed_and_costs_nothing(job: TrainingJob) -> None:
    bench = Bench(job_queue="misspelt")
    bench.launch(job)
    assert bench.states == [State.SUBMITTED, State.FAILED]
    assert "Job queue misspelt does not exist" in bench.statuses[-1].reasons[0]
    assert bench.spent() == 0.0
