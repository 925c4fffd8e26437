"""One job from its event to its end: claims attempts, runs them, retries, and says what became of it.

It is advanced by its owner's loop and never blocks for longer than a call to the object store or to the brokers. Every
step may fail and be taken again: what was done is on record in the ledger.
"""

import time
from collections.abc import Callable

import structlog

from foldtune.events import State, TrainingJob
from foldtune.object_store import ObjectStore
from launchers.ledger import Attempt, Ledger
from launchers.ownership import (
    DEAD_SECONDS,
    GIVE_UP_SECONDS,
    RENEW_SECONDS,
    HeartbeatMonitor,
    owner_is_dead,
    this_process,
)
from launchers.periodic import Periodic
from launchers.port import Ending, Launcher, LaunchError, Run, RunBusyError, RunOutcome
from launchers.reports import Report, status_of

log = structlog.get_logger(__name__)

# Another's run lasts minutes to hours: looking more often only costs requests.
LOOK_SECONDS = 2.0


class Execution:
    """Carries out one job event."""

    def __init__(
        self,
        job: TrainingJob,
        *,
        store: ObjectStore,
        launcher: Launcher,
        publish: Report,
        max_attempts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        # Whether another process runs the job, so that it takes no place of this one.
        self.elsewhere = False
        self._launcher = launcher
        self._publish = publish
        self._max_attempts = max_attempts
        self._clock = clock
        self._ledger = Ledger(store, job, this_process())
        self._silence = HeartbeatMonitor(clock)
        self._look_at = clock()
        self._run: Run | None = None
        self._renewal: Periodic | None = None
        self._told = 0
        self._cancelled = False

    @property
    def running(self) -> bool:
        """Whether a run of this process goes on."""
        return self._run is not None

    def cancel(self) -> None:
        """End the run, if there is one, and start no other. The coordinator has published the cancellation itself."""
        self._cancelled = True
        if self._run:
            self._launcher.cancel(self._run)

    def interrupt(self) -> None:
        """End the run, if there is one; whoever gets the event next runs the job again."""
        if self._run:
            self._launcher.interrupt(self._run)

    def advance(self, *, may_start: bool) -> bool:
        """Take the next step, if there is one; ``True`` once the job is settled and its event may be committed."""
        if self._run:
            return self._watch(self._run)
        if self._cancelled:
            return True
        if self._clock() < self._look_at:
            return False
        return self._begin(may_start=may_start)

    def _begin(self, *, may_start: bool) -> bool:
        attempts = self._ledger.attempts()
        last = attempts[-1] if attempts else None
        if last and last.outcome is None:
            if self._ledger.mine(last):
                self._start(last.number)
                return False
            self.elsewhere = not self._dead(last)
            if self.elsewhere:
                return self._look_later()
        if last and (settled := self._settled(attempts)):
            self._announce(settled)
            return True
        if not may_start:
            return self._look_later()
        number = last.number + 1 if last else 1
        if self._ledger.claim(number):
            self._start(number)
        return False

    def _look_later(self) -> bool:
        self._look_at = self._clock() + LOOK_SECONDS
        return False

    def _start(self, number: int) -> None:
        run = Run(self.job, self._ledger.write_job(), number)
        self._ledger.renew(number)
        # Before the start, so that it comes before what the trainer says.
        if self._told < number:
            self._publish(status_of(self.job, State.SUBMITTED))
            self._told = number
        try:
            self._launcher.submit(run)
        except RunBusyError:
            self._look_later()
            return
        except LaunchError as error:
            self._ledger.record(number, RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(str(error),)))
            return
        log.info("training started", request=self.job.request.request_id, run=run.name)
        self._run = run
        self._renewal = Periodic(lambda: self._ledger.renew(number), RENEW_SECONDS)

    def _watch(self, run: Run) -> bool:
        outcome = self._launcher.poll(run)
        if outcome is None:
            if self._renewal and self._renewal.age > GIVE_UP_SECONDS:
                log.warning("ownership cannot be renewed, the run is given up", run=run.name)
                self._launcher.interrupt(run)
            return False
        if self._renewal:
            self._renewal.stop()
        self._ledger.record(run.attempt, outcome)
        log.info("training ended", run=run.name, ending=outcome.ending, reasons=outcome.reasons)
        self._run = self._renewal = None
        if outcome.ending is Ending.INTERRUPTED:
            return False
        # At once, so that a retry keeps its place before the jobs that wait.
        return self._begin(may_start=not self._cancelled)

    def _settled(self, attempts: list[Attempt]) -> RunOutcome | None:
        """How the job ended, if no other attempt follows."""
        last = attempts[-1]
        outcome = last.outcome or RunOutcome(
            ending=Ending.FAILED, retryable=True, reasons=(f"the launcher of attempt {last.number} died",)
        )
        used = sum(attempt.counts for attempt in attempts)
        if outcome.final or (last.counts and used >= self._max_attempts):
            return outcome
        return None

    def _dead(self, attempt: Attempt) -> bool:
        if attempt.owner.until:
            # A job of AWS Batch: nobody's heart beats for it, and only its end is its end.
            return False
        heartbeat = (attempt.number, self._ledger.heartbeat(attempt.number))
        return owner_is_dead(attempt.owner) or self._silence.seconds(heartbeat) > DEAD_SECONDS

    def _announce(self, outcome: RunOutcome) -> None:
        if outcome.ending is Ending.FAILED and not outcome.announced:
            self._publish(status_of(self.job, State.FAILED, outcome))
