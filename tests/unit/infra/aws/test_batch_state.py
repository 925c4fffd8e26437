"""What `batch_state` does with state changes."""

from typing import Any

import pytest
from pydantic import ValidationError

from foldtune.errors import PublishError
from foldtune.events import State
from infra.aws.handlers import batch_state, launch
from tests.batch_service import BatchService
from tests.lambda_payloads import Context, Record, kafka_payload
from tests.unit.launchers.conftest import make_job

from .conftest import Published


@pytest.fixture
def job_id(batch: BatchService, published: Published, context: Context) -> str:
    """A launched job."""
    job = make_job("r-1")
    launch(kafka_payload([Record("x-training-jobs", 0, 1, b"r-1", job.encode())]), context)
    [found] = batch.jobs
    return found


def test_a_failed_job_is_reported_with_its_log_url(
    batch: BatchService, published: Published, context: Context, job_id: str
) -> None:
    batch.begin(job_id)
    batch.end(job_id, 75, statusReason="Essential container in task exited")
    for event in batch.events:
        batch_state(event, context)
    assert [status.state for status in published.reports] == [State.SUBMITTED, State.RUNNING, State.FAILED]
    *_, running, last = published.reports
    assert running.log_url
    assert last.log_url == running.log_url
    assert last.reasons == (
        "the trainer could not finish and requested a retry",
        "AWS Batch: Essential container in task exited",
    )


def test_a_failed_report_is_raised_and_succeeds_on_redelivery(
    batch: BatchService, published: Published, context: Context, job_id: str
) -> None:
    batch.end(job_id, 1)
    published.broken = PublishError("x-training-reports", "no answer")
    with pytest.raises(PublishError):
        batch_state(batch.events[-1], context)
    published.broken = None
    batch_state(batch.events[-1], context)
    assert published.reports[-1].state is State.FAILED


def test_unknown_properties_are_ignored(
    batch: BatchService, published: Published, context: Context, job_id: str
) -> None:
    batch.end(job_id, 1)
    event = batch.events[-1]
    odd: dict[str, Any] = {"nested": [{"deep": None}]}
    detail = {**event["detail"], **odd, "attempts": [{**event["detail"]["attempts"][0], **odd}]}
    batch_state({**event, **odd, "detail": detail}, context)
    assert published.reports[-1].state is State.FAILED


def test_a_job_that_never_ran_has_no_attempts_and_a_reason(
    batch: BatchService, published: Published, context: Context, job_id: str
) -> None:
    batch.end(job_id, None, statusReason="MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT")
    batch_state(batch.events[-1], context)
    assert published.reports[-1].reasons == ("AWS Batch: MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT",)


def test_jobs_of_others_are_ignored(published: Published, context: Context) -> None:
    detail = {
        "jobArn": "arn:aws:batch:us-east-1:123456789012:job/other",
        "jobId": "other",
        "jobName": "nightly",
        "status": "FAILED",
    }
    batch_state({"detail": detail}, context)
    assert not published.connected


def test_an_invalid_state_change_is_an_error(context: Context) -> None:
    with pytest.raises(ValidationError):
        batch_state({"detail": {"status": "FAILED"}}, context)
