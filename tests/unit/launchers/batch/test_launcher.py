"""The launcher against moto's AWS Batch, through boto3's own client."""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from foldtune.events import TrainingJob
from foldtune.settings import Settings
from foldtune.testing import MemoryObjectStore
from launchers.batch.batch_job import BatchJob
from launchers.batch.launcher import BatchLauncher, batch_client
from launchers.port import Ending, LaunchError, Run, RunOutcome

# An account of moto for each test takes a second.
pytestmark = pytest.mark.slow
REGION = "us-east-1"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An account with a queue and a job definition."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws(config={"batch": {"use_docker": False}}):
        trust = json.dumps({"Version": "2012-10-17", "Statement": []})
        role = boto3.client("iam").create_role(RoleName="batch", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        found = batch_client(REGION)
        environment = found.create_compute_environment(
            computeEnvironmentName="foldtune", type="UNMANAGED", state="ENABLED", serviceRole=role
        )
        found.create_job_queue(
            jobQueueName="foldtune",
            state="ENABLED",
            priority=1,
            computeEnvironmentOrder=[{"order": 1, "computeEnvironment": environment["computeEnvironmentArn"]}],
        )
        found.register_job_definition(
            jobDefinitionName="foldtune-trainer",
            type="container",
            containerProperties={
                "image": "trainer",
                "command": ["python", "-m", "trainers.job", "Ref::job_uri"],
                "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "512"}],
            },
        )
        yield found


@pytest.fixture
def run(job: TrainingJob) -> Run:
    """The first attempt at the job."""
    return Run(job, "s3://memory/jobs/j/job.json", 1)


@pytest.fixture
def launcher(client: Any, store: MemoryObjectStore) -> BatchLauncher:
    """A launcher with a client of its own."""
    return BatchLauncher(Settings(), store)


def outcome_of(launcher: BatchLauncher, run: Run) -> RunOutcome | None:
    status = launcher.poll(run)
    assert status
    return status.outcome


def jobs(client: Any) -> list[Any]:
    found = client.list_jobs(jobQueue="foldtune", filters=[{"name": "JOB_NAME", "values": ["*"]}])
    return list(found["jobSummaryList"])


def test_a_job_is_submitted_described_and_succeeds(
    client: Any, launcher: BatchLauncher, run: Run, store: MemoryObjectStore
) -> None:
    launcher.submit(run)
    [listed] = jobs(client)
    assert (listed["jobName"], listed["jobId"]) == (run.name, launcher.job_id(run))
    described = launcher.describe(launcher.job_id(run) or "")
    assert described
    assert client.describe_jobs(jobs=[described.job_id])["jobs"][0]["tags"] == {"foldtune": "foldtune-trainer"}
    assert described.parameters == {"request_id": "r-1", "model": "support", "job_uri": run.job_uri}
    outcome = outcome_of(launcher, run)
    assert outcome
    assert outcome.ending is Ending.SUCCEEDED
    assert outcome.log_url
    assert "us-east-1" in outcome.log_url


def test_submitting_again_with_or_without_the_record_makes_one_job(
    client: Any, launcher: BatchLauncher, run: Run
) -> None:
    launcher.submit(run)
    launcher.submit(run)
    forgetful = BatchLauncher(Settings(), MemoryObjectStore())
    forgetful.submit(run)
    assert len(jobs(client)) == 1
    assert forgetful.job_id(run) == launcher.job_id(run)


def test_the_payload_is_small(run: Run, launcher: BatchLauncher, client: Any) -> None:
    sizes = []
    launcher._client.meta.events.register(
        "before-call.batch.SubmitJob", lambda params, **_: sizes.append(len(params["body"]))
    )
    launcher.submit(run)
    assert 0 < sizes[0] < 1024


def test_a_failure_is_retryable(launcher: BatchLauncher, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_SIMPLE_BATCH_FAIL_AFTER", "0")
    launcher.submit(run)
    outcome = outcome_of(launcher, run)
    assert outcome
    assert (outcome.ending, outcome.final) == (Ending.FAILED, False)


def test_a_refusal_of_batch_is_a_launch_error(client: Any, run: Run, store: MemoryObjectStore) -> None:
    settings = Settings.model_validate({"batch": {"job_definition": "misspelt"}})
    with pytest.raises(LaunchError, match="misspelt does not exist"):
        BatchLauncher(settings, store).submit(run)
    assert not jobs(client)


def test_a_terminated_job_is_cancelled_and_not_failed(
    client: Any, launcher: BatchLauncher, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto ends a job when it is submitted: this one is set back to running."""
    from moto.batch.models import batch_backends

    launcher.submit(run)
    backend = batch_backends["123456789012"][REGION]
    job = backend._jobs[launcher.job_id(run) or ""]
    job.status = "RUNNING"
    monkeypatch.setattr(job, "is_alive", lambda: True)
    terminated: list[str] = []

    def terminate(reason: str) -> None:
        terminated.append(reason)
        job.status, job.job_stopped_reason = "FAILED", reason

    monkeypatch.setattr(job, "terminate", terminate)
    assert outcome_of(launcher, run) is None
    launcher.cancel(run)
    assert terminated == ["foldtune: cancelled"]
    outcome = outcome_of(launcher, run)
    assert outcome
    assert outcome.ending is Ending.CANCELLED


def test_a_job_of_another_name_is_not_terminated(
    client: Any, launcher: BatchLauncher, run: Run, store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the record says that the run's job is."""
    other = client.submit_job(jobName="another", jobQueue="foldtune", jobDefinition="foldtune-trainer")["jobId"]
    launcher.record_submission(run, other)
    monkeypatch.setattr(BatchJob, "ended", False)
    monkeypatch.setattr(launcher._client, "terminate_job", pytest.fail)
    launcher.cancel(run)
    launcher.interrupt(run)
    assert not [key for key in store.list("jobs/") if "stopping" in key]


def test_a_call_is_sent_once(client: Any) -> None:
    """A SubmitJob that is retried after a lost response makes a second job."""
    assert client.meta.config.retries["total_max_attempts"] == 1


@pytest.mark.parametrize("nothing", [{}, {"attempts": [], "container": {}}, {"attempts": [{}]}])
def test_a_job_with_few_properties_has_a_status(nothing: dict[str, Any]) -> None:
    about = {"jobArn": "arn:aws:batch:us-east-1:1:job/x", "jobId": "x", "jobName": "x", "status": "FAILED"}
    job = BatchJob.model_validate(about | nothing)
    outcome = job.outcome()
    assert outcome
    assert (outcome.ending, outcome.retryable, job.machine_hours, job.log_url("/g")) == (Ending.FAILED, True, 0, None)
