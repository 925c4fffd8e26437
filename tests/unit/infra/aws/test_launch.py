"""What `launch` does with Kafka payloads."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from foldtune.dead_letters import ERROR_HEADER, OFFSET_HEADER, TOPIC_HEADER
from foldtune.errors import PublishError
from foldtune.events import FineTuneStatus, State, TrainingJob, now
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic
from infra.aws.handlers import batch_state, launch
from infra.aws.status_store import StatusStore
from launchers.port import job_segment
from tests.batch_service import BatchService
from tests.lambda_payloads import Context, Record, kafka_payload
from tests.unit.launchers.conftest import make_job

from .conftest import Published

JOBS, STATUSES = "x-training-jobs", "x-fine-tune-status"
NONE_FAILED: dict[str, object] = {"batchItemFailures": []}


def a_job(number: int, *, partition: int = 0) -> Record:
    job = make_job(f"r-{number}")
    return Record(JOBS, partition, number, job.request.request_id.encode(), job.encode())


def a_status(offset: int, state: State, request_id: str = "r-1", **more: Any) -> Record:
    status = FineTuneStatus(request_id=request_id, model="support", state=state, at=now(), **more)
    return Record(STATUSES, 1, offset, request_id.encode(), status.encode())


def failures(*records: Record) -> dict[str, object]:
    return {
        "batchItemFailures": [
            {"itemIdentifier": {"partition": f"{one.topic}-{one.partition}", "offset": one.offset}} for one in records
        ]
    }


@pytest.mark.parametrize("source", ["SelfManagedKafka", "aws:kafka"])
def test_jobs_are_launched_from_either_source(
    batch: BatchService, published: Published, context: Context, source: str
) -> None:
    records = [a_job(1), a_job(2), a_job(3, partition=2)]
    assert launch(kafka_payload(records, source), context) == NONE_FAILED
    assert [job["parameters"]["request_id"] for job in batch.jobs.values()] == ["r-1", "r-2", "r-3"]
    assert [(status.request_id, status.state) for status in published.reports] == [
        (f"r-{number}", State.SUBMITTED) for number in (1, 2, 3)
    ]
    # Keyed by request, in the partition of the model's coordinator.
    assert published.messages[0][2] == {"key": "support/r-1", "partition_by": "support"}


def test_a_record_delivered_four_times_in_two_calls_is_one_job(
    batch: BatchService, published: Published, context: Context
) -> None:
    for _ in range(2):
        assert launch(kafka_payload([a_job(1), a_job(1, partition=3)]), context) == NONE_FAILED
    assert len(batch.jobs) == 1


@pytest.mark.parametrize("value", [b"\xffnothing", b"{}", b"", b"null", b'{"type": "training_job", "version": 3}'])
@pytest.mark.parametrize("key", [b"r-0", None])
def test_an_invalid_job_goes_to_the_dead_letters_once(
    batch: BatchService, published: Published, context: Context, value: bytes, key: bytes | None
) -> None:
    poison = Record(JOBS, 0, 7, key, value)
    assert launch(kafka_payload([poison, a_job(1)]), context) == NONE_FAILED
    assert len(batch.jobs) == 1
    [(letter, more)] = [(sent, more) for topic, sent, more in published.messages if topic is Topic.DEAD_LETTERS]
    assert (letter, more["key"]) == (value, key)
    headers = dict(more["headers"])
    assert (headers[TOPIC_HEADER], headers[OFFSET_HEADER]) == (JOBS.encode(), b"7")
    assert headers[ERROR_HEADER]


def test_a_dead_letter_over_the_brokers_limit_is_truncated(published: Published, context: Context) -> None:
    assert launch(kafka_payload([Record(JOBS, 0, 7, None, b"x" * (3 << 20))]), context) == NONE_FAILED
    [letter] = published.on(Topic.DEAD_LETTERS)
    assert len(letter) < 2 << 20


def test_a_tombstone_is_ignored(batch: BatchService, published: Published, context: Context) -> None:
    assert launch(kafka_payload([Record(JOBS, 0, 1, b"r-1", None)]), context) == NONE_FAILED
    assert not published.connected


def test_only_records_that_met_a_failing_broker_are_redelivered(
    batch: BatchService, published: Published, store: MemoryObjectStore, context: Context
) -> None:
    assert launch(kafka_payload([a_job(1)]), context) == NONE_FAILED
    published.broken = PublishError("x-training-reports", "no answer")
    poison = Record(JOBS, 1, 4, None, b"{}")
    records = [a_job(1), a_job(2), Record(JOBS, 0, 3, b"k", None), poison]
    assert launch(kafka_payload(records), context) == failures(records[1], poison)
    assert len(batch.jobs) == 1


def test_an_interrupted_launch_keeps_its_claim_until_it_expires(
    batch: BatchService, published: Published, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.broken = PublishError("x-training-reports", "no answer")
    record = a_job(1)
    launch(kafka_payload([record]), context)
    published.broken = None
    assert launch(kafka_payload([record]), context) == failures(record)
    assert not batch.jobs


@pytest.mark.parametrize(("seconds", "pause"), [(120, 20.0), (25, pytest.approx(15.0, abs=0.5)), (5, 0.0)])
def test_failed_records_are_not_redelivered_at_once(
    published: Published, batch: BatchService, monkeypatch: pytest.MonkeyPatch, seconds: float, pause: float
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("infra.aws.handlers.time.sleep", pauses.append)
    monkeypatch.setattr("infra.aws.handlers.PAUSE_SECONDS", 20.0)
    assert launch(kafka_payload([a_job(1)]), Context(120)) == NONE_FAILED
    assert not pauses
    published.broken = PublishError("x-training-reports", "no answer")
    assert launch(kafka_payload([a_job(2)]), Context(seconds)) == failures(a_job(2))
    assert pauses == [pause]


def test_a_corrupt_ledger_sends_no_record_to_the_dead_letters(
    batch: BatchService, published: Published, store: MemoryObjectStore, context: Context
) -> None:
    """The record itself is valid."""
    store.put(f"jobs/{job_segment(make_job('r-1'))}/attempt-1.submission.json", b"{}")
    with capture_logs() as lines:
        assert launch(kafka_payload([a_job(1), a_job(2)]), context) == failures(a_job(1))
    assert not published.on(Topic.DEAD_LETTERS)
    assert [job["parameters"]["request_id"] for job in batch.jobs.values()] == ["r-2"]
    [logged] = [line for line in lines if line["event"] == "record failed, will be redelivered"]
    assert (logged["offset"], logged["exc_info"]) == (1, True)


def test_with_little_time_left_no_record_is_handled(batch: BatchService, published: Published) -> None:
    records = [a_job(1), a_job(2)]
    assert launch(kafka_payload(records), Context(5)) == failures(*records)
    assert not batch.jobs


def test_a_record_of_an_unknown_topic_fails_alone(batch: BatchService, published: Published, context: Context) -> None:
    foreign = Record("y-training-jobs", 0, 1, b"k", b"{}")
    with capture_logs() as lines:
        assert launch(kafka_payload([foreign, a_job(1)]), context) == failures(foreign)
    assert "not y-training-jobs" in next(
        line["error"] for line in lines if line["event"] == "record failed, will be redelivered"
    )
    assert len(batch.jobs) == 1


# ── Statuses ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_training_that_goes_on_for_others_is_not_terminated(
    batch: BatchService, published: Published, context: Context
) -> None:
    launch(kafka_payload([a_job(1)]), context)
    running = {name: job["status"] for name, job in batch.jobs.items()}
    assert launch(kafka_payload([a_status(1, State.CANCELLED, run_continues=True)]), context) == NONE_FAILED
    assert {name: job["status"] for name, job in batch.jobs.items()} == running
    assert launch(kafka_payload([a_status(2, State.CANCELLED)]), context) == NONE_FAILED
    assert {name: job["status"] for name, job in batch.jobs.items()} != running


@pytest.mark.parametrize("state", [State.CANCELLED, State.FAILED])
def test_a_final_status_terminates_the_job_and_prevents_a_later_one(
    batch: BatchService, published: Published, context: Context, state: State
) -> None:
    """Cancelled by a caller, or timed out at the coordinator."""
    launch(kafka_payload([a_job(1)]), context)
    ended = [a_status(1, state), a_status(2, state, "r-2")]
    assert launch(kafka_payload(ended), context) == NONE_FAILED
    launch(kafka_payload([a_job(2)]), context)
    [job] = batch.jobs.values()
    assert (job["status"], job["statusReason"]) == ("FAILED", "foldtune: cancelled")


@pytest.mark.parametrize("state", [state for state in State if not state.terminal] + [State.COMPLETED])
def test_no_other_status_terminates_a_job(
    batch: BatchService, published: Published, context: Context, state: State
) -> None:
    launch(kafka_payload([a_job(1)]), context)
    assert launch(kafka_payload([a_status(1, state)]), context) == NONE_FAILED
    [job] = batch.jobs.values()
    assert job["status"] == "RUNNABLE"


def test_the_status_of_a_reported_failure_changes_nothing(
    batch: BatchService, published: Published, context: Context, store: MemoryObjectStore
) -> None:
    launch(kafka_payload([a_job(1)]), context)
    [job_id] = batch.jobs
    batch.end(job_id, 1)
    batch_state(batch.events[-1], context)
    before = {key: store.get(key) for key in store.list("jobs/") if not key.endswith("/cancelled")}
    assert launch(kafka_payload([a_status(1, State.FAILED)]), context) == NONE_FAILED
    batch_state(batch.events[-1], context)
    assert {key: store.get(key) for key in store.list("jobs/") if not key.endswith("/cancelled")} == before
    assert [status.state for status in published.reports] == [State.SUBMITTED, State.FAILED, State.FAILED]


def test_the_newest_status_is_stored_whatever_is_redelivered(store: MemoryObjectStore, context: Context) -> None:
    accepted, running = a_status(4, State.ACCEPTED), a_status(6, State.RUNNING)
    for records in ([accepted, running], [accepted], [running, accepted], [Record(STATUSES, 1, 9, b"r-1", None)]):
        assert launch(kafka_payload(records), context) == NONE_FAILED
        kept = StatusStore(store).newest("r-1")
        assert kept
        assert kept.state is State.RUNNING


def test_the_log_url_survives_statuses_of_the_trainer(store: MemoryObjectStore, context: Context) -> None:
    page = "https://example.com/log"
    launch(kafka_payload([a_status(4, State.RUNNING, log_url=page), a_status(5, State.EVALUATING)]), context)
    kept = StatusStore(store).newest("r-1")
    assert kept
    assert (kept.state, kept.log_url) == (State.EVALUATING, page)


def test_an_invalid_status_goes_to_the_dead_letters(published: Published, context: Context) -> None:
    assert launch(kafka_payload([Record(STATUSES, 0, 1, b"r-1", b"{}")]), context) == NONE_FAILED
    assert published.on(Topic.DEAD_LETTERS) == [b"{}"]


def test_a_job_reads_back_unchanged(store: MemoryObjectStore, batch: BatchService, published: Published) -> None:
    launch(kafka_payload([a_job(1)]), Context(60))
    [job] = batch.jobs.values()
    content = store.get(store.key(job["parameters"]["job_uri"]))
    assert TrainingJob.model_validate_json(content) == make_job("r-1")
