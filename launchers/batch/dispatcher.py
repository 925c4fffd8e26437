"""Drives executions on AWS Batch from functions, each called with one event and ended when it has handled it.

A call of ``launch`` takes one step. The end of a job arrives as a state change of Batch, at least once, in any order;
the first outcome on the ledger stays and is reported as often as its event arrives.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import structlog
from pydantic import BaseModel, ValidationError

from foldtune.events import RequestId, TrainingJob, now
from foldtune.knobs import ModelName
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from launchers.base_model import base_model_problem
from launchers.batch.batch_job import BatchJob
from launchers.batch.budget import BatchBudget
from launchers.batch.launcher import BatchLauncher
from launchers.execution import Execution, Phase, Report
from launchers.ledger import Ledger
from launchers.ownership import LeaseOwnership
from launchers.port import Run, RunBusyError, job_segment

log = structlog.get_logger(__name__)

# All attempts that Batch makes are one on the ledger.
ATTEMPT = 1


class _Parameters(BaseModel):
    request_id: RequestId
    model: ModelName


class Dispatcher:
    """Handles job events, cancellations and state changes."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        launcher: BatchLauncher,
        report: Report,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._max_attempts = settings.trainer.max_attempts
        self._model_folders = settings.trainer.model_folders
        self._store = store
        self._launcher = launcher
        self._budget = BatchBudget(store, settings)
        self._report = report
        self._clock = clock

    def launch(self, job: TrainingJob, deadline: datetime) -> None:
        """Submit a job, unless it was; at ``deadline`` the calling process is ended, whatever it does then.

        Raises:
            RunBusyError: another call is at it, or was and is not certainly gone; try again later.
        """
        execution = self._execution(job, self._ledger(job.request.model, job.request.request_id), deadline)
        execution.advance()
        if execution.phase is Phase.OTHER_LAUNCHER:
            log.warning("a launcher process runs this job", request_id=job.request.request_id)
        elif execution.phase in {Phase.ELSEWHERE, Phase.WAITING}:
            raise RunBusyError(job_segment(job))

    def cancel(self, model: str, request_id: str) -> None:
        """End the job of a request, if there is one, and let none start."""
        ledger = self._ledger(model, request_id)
        ledger.request_cancel()
        if job := ledger.read_job():
            self._launcher.cancel(Run(job, ledger.job_uri, ATTEMPT))

    def state_changed(self, batch_job: BatchJob) -> None:
        """Handle a state change of any job of the queue, late ones too; jobs that are not foldtune's are ignored."""
        job_id, name = batch_job.job_id, batch_job.job_name
        try:
            parameters = _Parameters.model_validate(batch_job.parameters)
        except ValidationError:
            log.warning("not a job of foldtune", job_id=job_id, name=name)
            return
        ledger = self._ledger(parameters.model, parameters.request_id)
        job = ledger.read_job()
        run = Run(job, ledger.job_uri, ATTEMPT) if job else None
        if job is None or run is None or name != run.name or not ledger.attempts():
            log.warning("job not on the ledger", request_id=parameters.request_id, job_id=job_id, name=name)
            return
        # Its launch may have been interrupted between submitting and recording.
        self._launcher.record_submission(run, job_id)
        if self._launcher.job_id(run) != job_id:
            log.warning("another job of the same name", request_id=parameters.request_id, job_id=job_id, name=name)
            return
        self._execution(job, ledger, self._clock()).observe(run, self._launcher.status(run, batch_job))

    def _execution(self, job: TrainingJob, ledger: Ledger, deadline: datetime) -> Execution:
        lease = max(deadline - self._clock(), timedelta(0))
        return Execution(
            job,
            ledger=ledger,
            ownership=LeaseOwnership(self._launcher.submit_timeout, lease, self._clock),
            launcher=self._launcher,
            report=self._report,
            max_attempts=self._max_attempts,
            budget=self._budget,
            base_model_problem=partial(base_model_problem, job.base_model, self._store, self._model_folders),
            wall_clock=self._clock,
        )

    def _ledger(self, model: str, request_id: str) -> Ledger:
        return Ledger(self._store, model, request_id)
