"""The one state machine that takes a job from its event to its end, for every launcher.

``advance`` takes the next step that the ledger (``ledger.py``) allows and never blocks for longer than a call to the
object store, the service or the brokers. Any step may fail and be repeated, by this execution or another:

1. Claim the next attempt, or take over one whose owner is gone. At most one owner may submit.
2. Refuse: a request that has ended, a job that is overdue or exceeds the budget, a base model that cannot be trained.
3. Report ``submitted``, so that it precedes the trainer's own reports.
4. Submit. A detached run may have been submitted before a crash: it is searched for first.
5. Cancel, if the request ended meanwhile: cancelled, or out of time. Of detached runs that is recorded *before* the
   run's record is read, and read *after* the run is recorded: whichever comes second sees the other.
6. Watch, record the outcome (the first one stays), settle the budget.
7. Retry as the next attempt, or report the end: again as often as the event is redelivered.

Two drivers call it: ``job_consumer.py``, a loop that polls all its executions, and ``batch/dispatcher.py``, for
functions: each call takes one step, and runs end in events of their own.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

import structlog

from foldtune.events import QUEUEING_TIME, REPORTING_TIME, FineTuneStatus, State, TrainingJob, now
from launchers.ledger import Attempt, Ledger
from launchers.ownership import Ownership
from launchers.port import Budget, Ending, Launcher, LaunchError, NoBudget, Run, RunBusyError, RunOutcome, RunStatus

log = structlog.get_logger(__name__)

Report = Callable[[FineTuneStatus], None]

# Runs of other owners, and of a service, last minutes to hours: more frequent checks only cost requests.
CHECK_SECONDS = 2.0
# A job's maximal delay beyond the time for its attempts. By then the coordinator has ended the request, even with an
# hour between snapshot and publication: the event is an old one, consumed again.
OVERDUE = QUEUEING_TIME + REPORTING_TIME + timedelta(hours=1)


class Phase(Enum):
    """Where an execution stands after a step."""

    # Nothing was submitted yet: no slot is free, an earlier run has not ended, or the lease has.
    WAITING = auto()
    # Another owner is about to submit the job, or runs it.
    ELSEWHERE = auto()
    # The owner is a launcher of the other kind, whose claims cannot be judged here.
    OTHER_LAUNCHER = auto()
    # A run is pending or running.
    RUNNING = auto()
    # The end is on record and reported: the event may be committed.
    SETTLED = auto()


class Execution:
    """Carries out one job event."""

    def __init__(
        self,
        job: TrainingJob,
        *,
        ledger: Ledger,
        ownership: Ownership,
        launcher: Launcher,
        report: Report,
        max_attempts: int,
        budget: Budget | None = None,
        request_ended: Callable[[], bool] = lambda: False,
        base_model_problem: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = now,
    ) -> None:
        self.job = job
        self.phase = Phase.WAITING
        self._ledger = ledger
        self._ownership = ownership
        self._launcher = launcher
        self._report = report
        self._max_attempts = max_attempts
        self._budget = budget or NoBudget()
        self._request_ended = request_ended
        self._base_model_problem = base_model_problem
        self._clock = clock
        self._wall_clock = wall_clock
        self._next_check = clock()
        # The run that this execution has submitted or adopted, until its outcome is on record.
        self._run: Run | None = None
        self._reported_attempt = 0
        self._reported_running = 0
        self._cancelled = False
        self._interrupted = False

    @property
    def running(self) -> bool:
        """Whether this execution watches a run."""
        return self._run is not None

    @property
    def elsewhere(self) -> bool:
        """Whether another owner runs the job, so that it takes no slot here."""
        return self.phase in {Phase.ELSEWHERE, Phase.OTHER_LAUNCHER}

    def cancel(self) -> None:
        """End the run, if there is one, and start no other. The coordinator has published the request's end itself."""
        if self._cancelled:
            return
        log.info("request has ended, job stopped", request_id=self.job.request.request_id, running=self.running)
        if self._launcher.detached:
            self._ledger.request_cancel()
        self._cancelled = True
        if self._run:
            self._launcher.cancel(self._run)

    def interrupt(self) -> None:
        """Interrupt the run, if there is one; the event's next consumer retries the job."""
        self._interrupted = True
        if self._run:
            self._launcher.interrupt(self._run)
        else:
            self._ownership.release()

    def advance(self, *, may_start: bool = True) -> bool:
        """Take the next step, if there is one; ``True`` once the job is settled and its event may be committed."""
        self.phase = self._step(may_start=may_start)
        return self.phase is Phase.SETTLED

    def observe(self, run: Run, status: RunStatus) -> Phase:
        """Act on the status of a submitted run, whether polled or delivered as an event, late or twice."""
        if status.outcome:
            return self._finish(run, status.outcome, status.machine_hours)
        if self._launcher.detached:
            if status.running:
                self._report_running(run, status.log_url or "")
            return self._check_later(Phase.RUNNING)
        if not self._ownership.valid:
            request_id = self.job.request.request_id
            log.warning("heartbeat not renewed, interrupting the run", request_id=request_id, run=run.name)
            self._launcher.interrupt(run)
        if status.running and self._reported_running < run.attempt and not self._interrupted:
            # The coordinator counts the time of a training from here, and not that in the queue. Reported once: the
            # trainer does so too.
            self._reported_running = run.attempt
            self._report_state(State.RUNNING)
        return Phase.RUNNING

    def _step(self, *, may_start: bool) -> Phase:
        if self._cancelled and not self._run and not self._launcher.detached:
            # A run elsewhere is ended by its own owner, which reads the cancellation too.
            self._ownership.release()
            return Phase.SETTLED
        if self._clock() < self._next_check:
            return self.phase
        if self._run and (phase := self._watch(self._run)):
            return phase
        return self._resume(may_start=may_start)

    def _resume(self, *, may_start: bool) -> Phase:
        """Continue where the ledger ends."""
        attempts = self._ledger.attempts()
        last = attempts[-1] if attempts else None
        if last and last.outcome is None and (phase := self._resume_open(last, may_start=may_start)):
            return phase
        if last and (outcome := self._final_outcome(attempts)):
            self._report_end(outcome)
            return Phase.SETTLED
        if not may_start:
            return self._check_later(Phase.WAITING)
        return self._claim(last.number + 1 if last else 1)

    def _resume_open(self, attempt: Attempt, *, may_start: bool) -> Phase | None:
        """Continue an attempt without an outcome; ``None`` where it has died with its owner."""
        run = Run(self.job, self._ledger.job_uri, attempt.number)
        if attempt.owner.leased is not self._launcher.detached:
            return self._check_later(Phase.OTHER_LAUNCHER)
        if self._launcher.detached:
            # A submitted run needs no owner: its outcome is the same whichever launcher records it.
            return self._watch(run) or self._take_over(attempt, run, may_start=may_start)
        if self._ownership.owns(attempt):
            return self._start(run)
        return None if self._ownership.owner_is_gone(attempt) else self._check_later(Phase.ELSEWHERE)

    def _claim(self, number: int) -> Phase:
        self._ledger.write_job(self.job)
        if not self._ledger.claim(number, self._ownership.new_owner()):
            return Phase.ELSEWHERE
        return self._start(Run(self.job, self._ledger.job_uri, number))

    def _take_over(self, attempt: Attempt, run: Run, *, may_start: bool) -> Phase:
        """Claim a detached attempt whose owner is gone; it may have submitted the run without recording that."""
        if not self._ownership.owner_is_gone(attempt):
            return self._check_later(Phase.ELSEWHERE)
        if not may_start:
            return self._check_later(Phase.WAITING)
        if attempt.owner.until and self._wall_clock() - attempt.owner.until > self._launcher.findable:
            reason = "its launch was interrupted too long ago to determine whether it ran"
            return self._finish(run, RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(reason,)))
        if not self._ledger.take_over(attempt, self._ownership.new_owner()):
            return Phase.ELSEWHERE
        # Before the cancellation is read: otherwise the job would be settled as cancelled while its run continues.
        if self._launcher.find(run) and (phase := self._watch(run)):
            return phase
        return self._start(run)

    def _start(self, run: Run) -> Phase:
        """Submit the run of an attempt that this execution owns."""
        if refusal := self._refusal():
            request = self.job.request
            log.warning("launch refused", request_id=request.request_id, run=run.name, reasons=refusal.reasons)
            # Releases what an interrupted launch reserved; before the outcome is recorded, which ends the attempt.
            self._budget.settle(self.job, 0)
            return self._finish(run, refusal)
        self._ownership.hold(run.attempt)
        if self._reported_attempt < run.attempt:
            self._report_state(State.SUBMITTED)
            self._reported_attempt = run.attempt
        if not self._ownership.valid:
            # Held anew in the next step, if the attempt is still this execution's.
            self._ownership.release()
            return self._check_later(Phase.WAITING)
        try:
            self._launcher.submit(run)
        except RunBusyError:
            return self._check_later(Phase.WAITING)
        except LaunchError as error:
            outcome = RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(str(error),))
            return self._finish(run, outcome, hours=0)
        self._run = run
        self._cancel_if_requested(run)
        return Phase.RUNNING

    def _refusal(self) -> RunOutcome | None:
        """The outcome of a job that must not be submitted; otherwise its cost is reserved."""
        if self._request_ended() or (self._launcher.detached and self._ledger.cancel_requested()):
            return RunOutcome(ending=Ending.CANCELLED)
        published, attempts = self.job.published_at, self._max_attempts * timedelta(seconds=self.job.max_seconds)
        if self._wall_clock() > (until := published + attempts + OVERDUE):
            reason = f"job: published at {published.isoformat()}, to be launched by {until.isoformat()}"
            return RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(reason,))
        if problem := self._base_model_problem():
            return RunOutcome(ending=Ending.FAILED, reasons=(f"base_model cannot be trained: {problem}",))
        return self._budget.reserve(self.job)

    def _watch(self, run: Run) -> Phase | None:
        """Poll a run; ``None`` where it was not submitted, as far as is on record."""
        status = self._launcher.poll(run)
        if status and not status.outcome and self._cancel_if_requested(run):
            status = self._launcher.poll(run)
        if status is None:
            return None
        self._run = run
        return self.observe(run, status)

    def _cancel_if_requested(self, run: Run) -> bool:
        requested = self._launcher.detached and self._ledger.cancel_requested()
        if requested:
            self._launcher.cancel(run)
        return requested

    def _finish(self, run: Run, outcome: RunOutcome, hours: float | None = None) -> Phase:
        """Record an outcome, unless there is one, and continue with the recorded one.

        ``hours`` is for how long a machine was rented, where that is known.
        """
        self._ownership.release()
        outcome, new = self._ledger.record_outcome(run.attempt, outcome)
        if new:
            request = self.job.request
            log.info(
                # Alarms count the first. Where the ledger has several attempts, another may follow.
                "job ended" if self._launcher.retries else "run ended",
                request_id=request.request_id,
                model=request.model,
                run=run.name,
                ending=outcome.ending.value,
                reasons=outcome.reasons,
            )
        if hours is not None:
            self._budget.settle(self.job, hours)
        self._run = None
        if outcome.ending is Ending.INTERRUPTED and not self._launcher.retries:
            return Phase.WAITING
        # At once, so that a retry keeps its slot before the jobs that wait.
        return self._resume(may_start=not self._cancelled)

    def _final_outcome(self, attempts: list[Attempt]) -> RunOutcome | None:
        """How the job ended, if no other attempt follows."""
        last = attempts[-1]
        outcome = last.outcome or RunOutcome(
            ending=Ending.FAILED, retryable=True, reasons=(f"the launcher of attempt {last.number} died",)
        )
        used = sum(attempt.counts for attempt in attempts)
        if outcome.final or self._launcher.retries or (last.counts and used >= self._max_attempts):
            return outcome
        return None

    def _report_running(self, run: Run, log_url: str) -> None:
        """Report that a detached attempt runs, with the page of its log: once, the trainer may have reported since."""
        if self._ledger.reported_log_url(run.attempt) == log_url:
            return
        if any(attempt.number == run.attempt and attempt.outcome for attempt in self._ledger.attempts()):
            return
        self._report_state(State.RUNNING, log_url=log_url or None)
        self._ledger.record_log_url(run.attempt, log_url)

    def _report_end(self, outcome: RunOutcome) -> None:
        """Report a failure or a cancellation; successes and refusals are reported by the trainer."""
        if outcome.ending is Ending.SUCCEEDED or outcome.announced:
            return
        cancelled = outcome.ending is Ending.CANCELLED
        # The cancellation of an attached run comes from the coordinator's own final status, so it needs no report.
        if cancelled and not self._launcher.detached:
            return
        self._report_state(
            State.CANCELLED if cancelled else State.FAILED,
            reasons=outcome.reasons,
            retryable=outcome.retryable,
            log_uri=outcome.log_uri,
            log_url=outcome.log_url,
        )

    def _report_state(self, state: State, **details: Any) -> None:
        request = self.job.request
        self._report(
            FineTuneStatus(
                request_id=request.request_id,
                model=request.model,
                state=state,
                at=self._wall_clock(),
                warnings=self.job.warnings,
                **details,
            )
        )

    def _check_later(self, phase: Phase) -> Phase:
        self._next_check = self._clock() + CHECK_SECONDS
        return phase
