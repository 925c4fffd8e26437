"""Concurrent calls in any interleaving of their steps: one step at a time, of a call that is drawn."""

import random
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldtune.events import State
from tests.examples import examples
from tests.unit.launchers.batch.test_dispatcher import EXPIRED, Bench, Steps, killed_before_submitting
from tests.unit.launchers.conftest import make_job

JOB = make_job("r-1")


class Turns(Steps):
    """Lets one of several threads make one step at a time."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self._draw = draw
        self._turn = threading.Condition()
        self._whose: int | None = None
        self._me = threading.local()

    def through(self, call: Callable[..., object]) -> Callable[..., object]:
        def stepped(*arguments: object, **named: object) -> object:
            self._pause()
            return call(*arguments, **named)

        return stepped

    def run(self, *calls: Callable[[], None]) -> None:
        """Make all calls, and return when all have returned."""
        going: set[int] = set(range(len(calls)))

        def work(number: int) -> None:
            self._me.number = number
            self._pause()
            try:
                calls[number]()
            finally:
                with self._turn:
                    going.discard(number)
                    self._whose = None
                    self._turn.notify_all()

        threads = [threading.Thread(target=work, args=(number,)) for number in going]
        for thread in threads:
            thread.start()
        last = -1
        while going:
            with self._turn:
                # Mostly the same again: races show when one call is held up while another makes many steps.
                if last not in going or self._draw.random() < 0.2:
                    last = self._draw.choice(sorted(going))
                self._whose = last
                self._turn.notify_all()
                self._turn.wait_for(lambda: self._whose is None)
        for thread in threads:
            thread.join()

    def _pause(self) -> None:
        number = getattr(self._me, "number", None)
        if number is None:
            return
        with self._turn:
            if self._whose == number:
                self._whose = None
                self._turn.notify_all()
            self._turn.wait_for(lambda: self._whose == number)


# Whole schedules of a hundred steps: drawn step by step, hypothesis would hardly ever leave the first call.
SEEDS = st.integers(0, 2**32)
MANY = settings(max_examples=examples(60))


@pytest.mark.slow
@MANY
@given(seed=SEEDS, launches=st.integers(1, 3), cancelled=st.booleans(), taken_over=st.booleans())
def test_every_interleaving_has_one_job_and_terminates_a_cancelled_one(
    seed: int, launches: int, cancelled: bool, taken_over: bool
) -> None:
    bench = killed_before_submitting(JOB) if taken_over else Bench()
    bench.time += EXPIRED
    bench.steps = Turns(random.Random(seed))
    launched: list[bool] = []
    calls: list[Callable[[], None]] = [lambda: launched.append(bench.try_to_launch(JOB))] * launches
    bench.steps.run(*calls, *([lambda: bench.cancel(JOB)] if cancelled else []))
    assert len(bench.batch.jobs) <= 1
    if not all(launched):
        # The busy one is redelivered.
        bench.time += EXPIRED
        bench.launch(JOB)
    assert len(bench.batch.jobs) <= 1
    if not cancelled:
        assert bench.only["status"] == "RUNNABLE"
        return
    assert all(job["status"] == "FAILED" for job in bench.batch.jobs.values())
    bench.deliver(*(event for event in bench.batch.events if event["detail"]["status"] == "FAILED"))
    assert {state for state in bench.states if state.terminal} == {State.CANCELLED}


@pytest.mark.slow
@MANY
@given(seed=SEEDS)
def test_a_job_that_fails_while_it_is_cancelled_has_one_outcome(seed: int) -> None:
    bench = Bench()
    bench.launch(JOB)
    job_id = bench.only["jobId"]

    def fail() -> None:
        if bench.only["status"] != "FAILED":
            bench.batch.end(job_id, 1)
        bench.deliver(bench.batch.events[-1])

    bench.steps = Turns(random.Random(seed))
    bench.steps.run(fail, fail, lambda: bench.cancel(JOB))
    assert len({state for state in bench.states if state.terminal}) == 1


@pytest.mark.slow
@MANY
@given(seed=SEEDS)
def test_reservations_of_a_month_add_up_in_every_interleaving(seed: int) -> None:
    bench = Bench(hourly_prices={"any": 1.0}, max_month_dollars=5.0)
    bench.steps = Turns(random.Random(seed))
    jobs = [make_job(f"r-{number}", max_seconds=3600) for number in range(3)]
    bench.steps.run(*(lambda job=job: bench.launch(job) for job in jobs))
    assert len(bench.batch.jobs) == 2
    assert bench.spent() == 4.0
