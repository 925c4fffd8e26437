"""Runs a job on AWS Batch.

SubmitJob has no client token: only the owner of the attempt (``ledger.py``) may call ``submit``. Then the next call
repairs a crash at any point: a job that was submitted, but not recorded, is found by its name.

The attempts are Batch's own. A retry depends on the exit code and on what happened to the machine, which Batch knows at
once and acts upon itself; no event has to arrive for it, and none can be lost.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import boto3
import structlog
from botocore.config import Config

from foldtune.errors import InfrastructureError, InvalidSettingsError
from foldtune.object_keys import attempt_key
from foldtune.object_store import AWS_ERRORS, ObjectStore
from foldtune.settings import Settings
from launchers.batch.batch_job import BatchJob
from launchers.port import Ending, Launcher, LaunchError, Run, RunOutcome, RunStatus
from trainers.exit_codes import ExitCode

if TYPE_CHECKING:
    from mypy_boto3_batch import BatchClient
    from mypy_boto3_batch.type_defs import EvaluateOnExitTypeDef

log = structlog.get_logger(__name__)

# Batch itself accepts no less.
MIN_TIMEOUT_SECONDS = 60
# The name of the tag of our jobs, which infra/aws/roles.yml repeats.
TAG = "foldtune"
# A call to Batch that was sent is certainly over after this.
CALL_SECONDS = 30
# Batch lists jobs for a week after their end; a day less, for clocks and delays.
LISTED = timedelta(days=6)
# The first match counts, and what matches none is retried: so the last one matches everything.
RETRY_STRATEGY: list["EvaluateOnExitTypeDef"] = [
    {"onStatusReason": "Host EC2*", "action": "RETRY"},
    {"onReason": "CannotPullContainerError:*", "action": "RETRY"},
    {"onExitCode": str(int(ExitCode.TRY_AGAIN)), "action": "RETRY"},
    {"onReason": "*", "action": "EXIT"},
]


class BatchError(InfrastructureError):
    """AWS Batch did not complete a request:"""


def batch_client(region: str) -> "BatchClient":
    """A client that sends each call once: a SubmitJob that is retried after a lost response makes a second job."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=CALL_SECONDS - 10)
    try:
        return boto3.client("batch", region_name=region, config=config)
    except AWS_ERRORS as error:
        raise InvalidSettingsError(f"s3.region or AWS_…: {error}") from error


class BatchLauncher(Launcher):
    """Submits runs to a job queue; their definition's command takes the job's address as ``Ref::job_uri``."""

    detached = True
    retries = True
    submit_timeout = timedelta(seconds=CALL_SECONDS)
    findable = LISTED

    def __init__(self, settings: Settings, store: ObjectStore, client: "BatchClient | None" = None) -> None:
        self._settings = settings
        self._store = store
        self._client = client or batch_client(settings.s3.region)

    def submit(self, run: Run) -> None:
        if not self.find(run):
            self.record_submission(run, self._submit(run))

    def poll(self, run: Run) -> RunStatus | None:
        if (job_id := self.job_id(run)) is None:
            return None
        if job := self.describe(job_id):
            return self.status(run, job)
        reason = "AWS Batch no longer lists the job: it deletes jobs some days after their end"
        return RunStatus(outcome=RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(reason,)))

    def find(self, run: Run) -> bool:
        if self.job_id(run):
            return True
        job_id = self._listed_job_id(run)
        if job_id:
            self.record_submission(run, job_id)
        return job_id is not None

    def cancel(self, run: Run) -> None:
        self._stop(run, RunOutcome(ending=Ending.CANCELLED))

    def interrupt(self, run: Run) -> None:
        self._stop(run, RunOutcome(ending=Ending.INTERRUPTED, retryable=True))

    def describe(self, job_id: str) -> BatchJob | None:
        """A job as Batch describes it; ``None`` where it ended more than a week ago."""
        with _batch_errors():
            jobs = self._client.describe_jobs(jobs=[job_id])["jobs"]
        return BatchJob.model_validate(jobs[0]) if jobs else None

    def status(self, run: Run, job: BatchJob) -> RunStatus:
        """The status of a run whose job stands as described: Batch says FAILED also of one that was asked to end."""
        log_url = job.log_url(self._settings.batch.log_group)
        if not job.ended:
            return RunStatus(running=job.status == "RUNNING", log_url=log_url)
        stopping = self._store.find(_key(run, "stopping.json"))
        outcome = job.outcome(RunOutcome.model_validate_json(stopping) if stopping else None)
        return RunStatus(
            outcome=outcome and outcome.model_copy(update={"log_url": log_url}),
            log_url=log_url,
            machine_hours=job.machine_hours,
        )

    def job_id(self, run: Run) -> str | None:
        """Batch's id of the run's job, if it is on record."""
        record = self._store.find(_key(run, "batch.json"))
        return str(json.loads(record)["job_id"]) if record else None

    def record_submission(self, run: Run, job_id: str) -> None:
        """Record Batch's id of the run's job, unless one is on record."""
        self._store.put_if_absent(_key(run, "batch.json"), json.dumps({"job_id": job_id}).encode())

    def _listed_job_id(self, run: Run) -> str | None:
        with _batch_errors():
            pages = self._client.get_paginator("list_jobs").paginate(
                jobQueue=self._settings.batch.job_queue, filters=[{"name": "JOB_NAME", "values": [run.name]}]
            )
            # The filter is case-insensitive.
            jobs = (job for page in pages for job in page["jobSummaryList"] if job["jobName"] == run.name)
            return next((job["jobId"] for job in jobs), None)

    def _submit(self, run: Run) -> str:
        request, batch = run.job.request, self._settings.batch
        try:
            response = self._client.submit_job(
                jobName=run.name,
                jobQueue=batch.job_queue,
                jobDefinition=batch.job_definition,
                parameters={"request_id": request.request_id, "model": request.model, "job_uri": run.job_uri},
                retryStrategy={"attempts": self._settings.trainer.max_attempts, "evaluateOnExit": RETRY_STRATEGY},
                timeout={"attemptDurationSeconds": max(run.job.max_seconds, MIN_TIMEOUT_SECONDS)},
                # By which a role may end these jobs and no others.
                tags={TAG: batch.job_definition},
            )
        except self._client.exceptions.ClientException as error:
            # Refused by Batch: there is no job. After any other error there may be one.
            raise LaunchError(run.name, error) from error
        except AWS_ERRORS as error:
            raise BatchError(error) from error
        log.info("job submitted", request_id=request.request_id, run=run.name, job_id=response["jobId"])
        return response["jobId"]

    def _stop(self, run: Run, outcome: RunOutcome) -> None:
        job_id = self.job_id(run)
        if job_id:
            job = self.describe(job_id)
            if job is None or job.ended:
                return
            if job.job_name != run.name:
                log.error("job on record is not of this run", run=run.name, job_id=job_id, name=job.job_name)
                return
        self._store.put_if_absent(_key(run, "stopping.json"), outcome.model_dump_json().encode())
        if job_id:
            try:
                # CancelJob does not end a job that is starting or running.
                self._client.terminate_job(jobId=job_id, reason=f"foldtune: {outcome.ending}")
            except self._client.exceptions.ClientException as error:
                request_id = run.job.request.request_id
                log.warning("job not terminated", request_id=request_id, run=run.name, job_id=job_id, error=str(error))
            except AWS_ERRORS as error:
                raise BatchError(error) from error


@contextmanager
def _batch_errors() -> Iterator[None]:
    try:
        yield
    except AWS_ERRORS as error:
        raise BatchError(error) from error


def _key(run: Run, name: str) -> str:
    return attempt_key(run.job.request.model, run.job.request.request_id, run.attempt, name)
