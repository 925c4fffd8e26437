"""Carries out job events where no process waits for the end: in functions that are called with one thing that happened.

Each call takes up the record where the last one, complete or cut short, has left it. One of ``launch`` submits:

1. The attempt is claimed on the ledger, or taken over from a claimant that is surely gone. Until its own time is over
   nobody else touches it: so at most one ever submits.
2. What the job can cost is set aside, once, or the job is refused.
3. ``submitted`` is reported, so that it comes before what the trainer says.
4. The job is submitted, unless one of its name is there already, and its id is noted (``batch.py``).
5. Was the request cancelled in the meantime, the job is ended. A cancellation is noted *before* the job's id is looked
   for, and looked for *after* the id is noted: whichever comes second sees the other.

The end arrives as an event, at least once, in any order. The first outcome on the ledger stays; it is reported again as
often as it arrives, and what was set aside becomes what was spent.
"""

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from pydantic import BaseModel, ValidationError

from foldtune.errors import ObjectMissingError
from foldtune.events import REPORTING_TIME, RequestId, State, TrainingJob, now
from foldtune.knobs import ModelName
from foldtune.object_keys import attempt_key, job_prefix
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from launchers.batch.batch_job import BatchJob
from launchers.batch.launcher import CALL_SECONDS, BatchLauncher
from launchers.batch.spending import Spending
from launchers.ledger import Attempt, Ledger, Owner
from launchers.port import Ending, LaunchError, Run, RunBusyError, RunOutcome
from launchers.reports import Report, status_of

log = structlog.get_logger(__name__)

# All attempts that Batch makes are one on the ledger.
ATTEMPT = 1
# Batch lists a job for a week after its end. Later it cannot be told any more whether one was submitted.
LISTED = timedelta(days=6)
# What a job may be late by, beyond what its attempts may take. The coordinator has given it up by then, even if an hour
# went by between its snapshot and its publication: it is history, read again.
OVERDUE = REPORTING_TIME + timedelta(hours=1)


class _Parameters(BaseModel):
    request_id: RequestId
    model: ModelName


class Dispatcher:
    """What the functions do with job events, cancellations and state changes."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        launcher: BatchLauncher,
        report: Report,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._spending = Spending(store, settings)
        self._attempts = settings.trainer.max_attempts
        self._report = report
        self._clock = clock

    def launch(self, job: TrainingJob, deadline: datetime) -> None:
        """Submit a job, unless it was; at ``deadline`` the calling process is ended, whatever it does then.

        Raises:
            RunBusyError: another call is at it, or was and is not surely gone; try again later.
        """
        ledger = self._ledger(job, deadline)
        run = Run(job, ledger.write_job(), ATTEMPT)
        attempt = self._attempt(ledger)
        if attempt and attempt.outcome:
            self._tell(run, attempt.outcome)
        elif attempt and attempt.owner.until is None:
            log.warning("a process runs this job", run=run.name)
        elif self._launcher.job_id(run) or not self._own(ledger, attempt, run):
            self._look(run)
        else:
            self._submit(run, deadline)

    def cancel(self, model: str, request_id: str) -> None:
        """End the job of a request, if there is one, and let none begin."""
        self._store.put_if_absent(_cancelled_key(model, request_id), b"")
        if run := self._run(model, request_id):
            self._launcher.cancel(run)

    def changed(self, change: BatchJob) -> None:
        """Take in how a job of the queue stands now, or stood once; what is not foldtune's is left alone."""
        try:
            about = _Parameters.model_validate(change.parameters)
        except ValidationError:
            log.warning("not a job of foldtune", job_id=change.job_id, name=change.job_name)
            return
        run = self._run(about.model, about.request_id)
        if run is None or change.job_name != run.name or self._attempt(self._ledger(run.job)) is None:
            log.warning("no job of the ledger", job_id=change.job_id, name=change.job_name)
            return
        # Its launch may have been cut short between submitting and noting.
        self._launcher.note(run, change.job_id)
        if self._launcher.job_id(run) != change.job_id:
            log.warning("another job of the same name", job_id=change.job_id, name=change.job_name)
            return
        self._take_in(run, change)

    def _own(self, ledger: Ledger, attempt: Attempt | None, run: Run) -> bool:
        """Become the one who may submit; ``False`` where one who is gone has done it."""
        if attempt is None:
            if not ledger.claim(ATTEMPT):
                raise RunBusyError(run.name)
            return True
        until = attempt.owner.until or self._clock()
        if self._clock() <= until:
            raise RunBusyError(run.name, until)
        if self._clock() - until > LISTED:
            reason = "its launch was cut short, and whether AWS Batch has run it cannot be told any more"
            self._settle(run, RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(reason,)))
            return False
        if not ledger.take_over(attempt):
            raise RunBusyError(run.name)
        return not self._launcher.adopt(run)

    def _submit(self, run: Run, deadline: datetime) -> None:
        if refusal := self._refusal(run):
            log.warning("not launched", request_id=run.job.request.request_id, reasons=refusal.reasons)
            # A call that was cut short may have set something aside; before the record, after which nobody looks again.
            self._spending.settle(run.job, 0)
            self._settle(run, refusal)
            return
        self._report(status_of(run.job, State.SUBMITTED))
        if self._clock() >= deadline:
            raise RunBusyError(run.name)
        try:
            self._launcher.submit(run)
        except LaunchError as error:
            self._settle(run, RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(str(error),)), hours=0)
            return
        self._end_if_cancelled(run)

    def _refusal(self, run: Run) -> RunOutcome | None:
        """Why a job is not to be launched, if so; what it can cost is set aside otherwise."""
        if self._cancelled(run):
            return RunOutcome(ending=Ending.CANCELLED)
        job = run.job
        until = job.published_at + self._attempts * timedelta(seconds=job.max_seconds) + OVERDUE
        if self._clock() > until:
            reason = f"job: published at {job.published_at.isoformat()}, to be launched by {until.isoformat()}"
            return RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(reason,))
        return self._spending.reserve(job)

    def _look(self, run: Run) -> None:
        """What is delivered again looks for itself: the event of the job's end may have been lost."""
        self._end_if_cancelled(run)
        if job := self._launcher.described(run):
            self._take_in(run, job)
        elif outcome := self._launcher.poll(run):
            self._settle(run, outcome)

    def _take_in(self, run: Run, job: BatchJob) -> None:
        if outcome := self._launcher.outcome(run, job):
            self._settle(run, outcome, job.hours)
        elif job.status == "RUNNING" and (attempt := self._attempt(self._ledger(run.job))) and not attempt.outcome:
            self._running(run, job)

    def _settle(self, run: Run, outcome: RunOutcome, hours: float | None = None) -> None:
        """Put an outcome on record, unless there is one, and tell what is: the first call may not have come to that.

        ``hours`` is for how long a machine was rented, where that is known.
        """
        outcome, new = self._ledger(run.job).record_once(run.attempt, outcome)
        if new:
            about = run.job.request
            log.info("job ended", request_id=about.request_id, model=about.model, ending=outcome.ending.value)
        if hours is not None:
            self._spending.settle(run.job, hours)
        self._tell(run, outcome)

    def _tell(self, run: Run, outcome: RunOutcome) -> None:
        """Report an end, unless the trainer has: a success or a refusal ends only when the brokers have its report."""
        if outcome.ending is Ending.CANCELLED:
            self._report(status_of(run.job, State.CANCELLED, outcome))
        elif outcome.ending is not Ending.SUCCEEDED and not outcome.announced:
            self._report(status_of(run.job, State.FAILED, outcome))

    def _running(self, run: Run, job: BatchJob) -> None:
        """Report that an attempt runs, with the page of its log: once, the trainer may have said more since."""
        told = RunOutcome(ending=Ending.SUCCEEDED, log_url=self._launcher.log_url(job))
        key, page = (
            attempt_key(run.job.request.model, run.job.request.request_id, run.attempt, "log-url"),
            (told.log_url or "").encode(),
        )
        try:
            if self._store.get(key) == page:
                return
        except ObjectMissingError:
            pass
        self._report(status_of(run.job, State.RUNNING, told))
        self._store.put(key, page)

    def _end_if_cancelled(self, run: Run) -> None:
        if self._cancelled(run):
            self._launcher.cancel(run)

    def _cancelled(self, run: Run) -> bool:
        key = _cancelled_key(run.job.request.model, run.job.request.request_id)
        return key in self._store.list(key)

    def _run(self, model: str, request_id: str) -> Run | None:
        key = f"{job_prefix(model, request_id)}/job.json"
        try:
            job = TrainingJob.model_validate_json(self._store.get(key))
        except ObjectMissingError:
            return None
        return Run(job, self._store.uri(key), ATTEMPT)

    def _ledger(self, job: TrainingJob, deadline: datetime | None = None) -> Ledger:
        until = (deadline or self._clock()) + timedelta(seconds=CALL_SECONDS)
        owner = Owner(token=uuid.uuid4().hex, host="function", pid=0, process_started=0.0, until=until)
        return Ledger(self._store, job, owner)

    def _attempt(self, ledger: Ledger) -> Attempt | None:
        return next(iter(ledger.attempts()), None)


def _cancelled_key(model: str, request_id: str) -> str:
    return f"{job_prefix(model, request_id)}/cancelled"
