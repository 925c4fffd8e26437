"""The entry points of the AWS Lambda functions.

Events and permissions of each, beside a network to the brokers and its own log group. Reading an S3 key that may be
missing needs ``s3:ListBucket`` on its prefix, or S3 answers 403 instead of 404.

``launch``       records of ``training-jobs`` and ``fine-tune-status``, with partial batch responses.
                 S3 read, write, list ``jobs/ spend/ statuses/``; ``batch:SubmitJob`` on the queue and the definition,
                 ``batch:TerminateJob`` on jobs, ``batch:ListJobs`` and ``batch:DescribeJobs``.
                 Kafka: writes ``training-reports``, ``dead-letters``.
``batch_state``  ``Batch Job State Change`` events of the queue; on an error Lambda retries twice, then keeps the event.
                 S3 read, write, list ``jobs/ spend/``. Kafka: writes ``training-reports``.
``api``          the routes of ``infra.aws.http_api``, of an HTTP API with a JWT authorizer.
                 S3 read, list ``statuses/ models/``. Kafka: writes ``fine-tune-requests``, ``audit``.
                 Of two requests under one id the first counts; once that has a status, another one is refused.
``schedule``     events of an EventBridge schedule, unmodified. Kafka: writes ``fine-tune-requests``.

All read the Kafka secrets (``secretsmanager:GetSecretValue``) whenever they connect, so that a rotation needs no
redeployment. Settings are ``FOLDTUNE_…`` variables: ``kafka`` and ``s3``; ``batch`` and ``trainer.max_attempts`` for
the first two, ``schedule`` for the last.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import structlog
from pydantic import ValidationError
from structlog.contextvars import clear_contextvars

from api.problems import SECURITY_HEADERS
from foldtune.dead_letters import reject_record
from foldtune.errors import TRANSIENT_ERRORS
from foldtune.events import Event, FineTuneStatus, State, TrainingJob, now
from foldtune.kafka import DELIVERY_SECONDS, Publisher
from foldtune.logs import configure_logs
from foldtune.object_store import S3ObjectStore
from foldtune.reports import publish_report
from foldtune.request_ids import scheduled_request
from foldtune.secrets import kafka_with_secrets
from foldtune.settings import Settings, load_settings
from foldtune.status_order import StatusRecord
from foldtune.topics import Topic
from infra.aws.http_api import HttpApi
from infra.aws.lambda_events import Context, HttpRequest, KafkaEvent, KafkaRecord, ScheduledEvent, StateChange
from infra.aws.status_store import StatusStore
from launchers.batch.dispatcher import Dispatcher
from launchers.batch.launcher import BatchLauncher
from launchers.port import RunBusyError

_log = structlog.get_logger(__name__)

# With less time left, no further record is begun.
RESERVE_SECONDS = 10.0
# Lambda redelivers at once, and at most 100 times. The claim of an interrupted launch takes minutes to expire, and
# brokers or AWS may take as long to recover.
PAUSE_SECONDS = 20.0
# The API's function has 28 s in all; connecting to the brokers may take 8 of them.
API_DELIVERY_SECONDS = 15

GetPublisher = Callable[[], Publisher]

if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
    configure_logs(load_settings().log_level)


# ── launch ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def launch(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """Launch jobs, and cancel those of ended requests; returns the records that failed, for redelivery."""
    settings = load_settings()
    failed: list[dict[str, Any]] = []
    with _publishing(settings) as publisher:
        handler = RecordHandler(settings, publisher, context)
        for name, records in KafkaEvent.model_validate(event).records.items():
            for record in records:
                try:
                    handler.handle(record)
                except Exception as error:
                    # Defects included: one record's failure must not fail the others of the batch.
                    expected = isinstance(error, (RunBusyError, *TRANSIENT_ERRORS))
                    fields = {**record.position, "error": str(error)}
                    _log.warning("record failed, will be redelivered", **fields, exc_info=not expected)
                    failed.append({"itemIdentifier": {"partition": name, "offset": record.offset}})
    if failed:
        time.sleep(max(0.0, min(PAUSE_SECONDS, _remaining_seconds(context) - RESERVE_SECONDS)))
    return {"batchItemFailures": failed}


class RecordHandler:
    """Handles records of ``training-jobs`` and ``fine-tune-status``, one at a time."""

    def __init__(self, settings: Settings, publisher: GetPublisher, context: Context) -> None:
        prefix = settings.kafka.topic_prefix
        store = S3ObjectStore(settings.s3)
        self._publisher = publisher
        self._context = context
        self._statuses = StatusStore(store)
        self._dispatcher = Dispatcher(settings, store, BatchLauncher(settings, store), _report(publisher))
        self._handlers: dict[str, tuple[type[Event], Callable[[KafkaRecord, Any], None]]] = {
            Topic.TRAINING_JOBS.named(prefix): (TrainingJob, self._handle_job),
            Topic.FINE_TUNE_STATUS.named(prefix): (FineTuneStatus, self._handle_status),
        }

    def handle(self, record: KafkaRecord) -> None:
        """Act on a record; one that cannot be decoded goes to the dead letters.

        Raises:
            RunBusyError: too little time is left, or another call works on the same job.
        """
        if _remaining_seconds(self._context) < RESERVE_SECONDS:
            raise RunBusyError(record.topic, record.partition, record.offset)
        if record.value is None:
            return
        if record.topic not in self._handlers:
            msg = f"this function handles {' and '.join(self._handlers)}, not {record.topic}"
            raise ValueError(msg)
        event_type, handler = self._handlers[record.topic]
        try:
            event = event_type.model_validate_json(record.value)
        except ValidationError as error:
            reject_record(self._publisher(), record, error)
            return
        handler(record, event)

    def _handle_job(self, _: KafkaRecord, job: TrainingJob) -> None:
        self._dispatcher.launch(job, now() + timedelta(seconds=_remaining_seconds(self._context)))

    def _handle_status(self, record: KafkaRecord, status: FineTuneStatus) -> None:
        self._statuses.update(StatusRecord(partition=record.partition, offset=record.offset, status=status))
        # The request was cancelled, or timed out: its job has to stop. A job that has ended by itself is not affected.
        if status.state.terminal and status.state is not State.COMPLETED and not status.run_continues:
            self._dispatcher.cancel(status.model, status.request_id)


# ── batch_state ──────────────────────────────────────────────────────────────────────────────────────────────────────


def batch_state(event: dict[str, Any], context: Context) -> None:
    """Report a state change of a Batch job; on an error Lambda retries twice, then the event goes to the queue."""
    settings = load_settings()
    store = S3ObjectStore(settings.s3)
    with _publishing(settings) as publisher:
        dispatcher = Dispatcher(settings, store, BatchLauncher(settings, store), _report(publisher))
        dispatcher.state_changed(StateChange.model_validate(event).detail)


# ── api ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def api(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """Answer one call of the HTTP API, by the rules of ``api.access``."""
    call, settings = HttpRequest.model_validate(event), load_settings()
    clear_contextvars()
    store = S3ObjectStore(settings.s3)
    answer = HttpApi(settings, store, lambda: _publishing(settings, API_DELIVERY_SECONDS)).answer(call)
    _log.info("call answered", route=call.route, status=answer.status.value)
    return {
        "statusCode": answer.status.value,
        "headers": SECURITY_HEADERS | {"content-type": answer.content_type} | dict(answer.headers),
        "body": answer.body.decode("utf-8", "replace"),
    }


# ── schedule ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def schedule(event: dict[str, Any], context: Context) -> None:
    """Request each of the configured models, once per firing of the schedule: its time is part of the request's id."""
    fired_at = ScheduledEvent.model_validate(event).time
    settings = load_settings()
    with _publishing(settings) as publisher:
        for model in settings.schedule.models:
            publisher().send(Topic.FINE_TUNE_REQUESTS, scheduled_request(model, fired_at), key=model)
        if settings.schedule.models:
            publisher().flush()


# ── Shared ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _publishing(settings: Settings, delivery_seconds: int = DELIVERY_SECONDS) -> Iterator[GetPublisher]:
    """A publisher that connects on first use.

    It does not outlive the invocation: between two a function is frozen, its connections die and secrets may change.
    """
    with ExitStack() as stack:

        @cache
        def publisher() -> Publisher:
            kafka = stack.enter_context(kafka_with_secrets(settings))
            return stack.enter_context(Publisher(kafka, delivery_seconds))

        yield publisher


def _report(publisher: GetPublisher) -> Callable[[FineTuneStatus], None]:
    return lambda status: publish_report(publisher(), status)


def _remaining_seconds(context: Context) -> float:
    return context.get_remaining_time_in_millis() / 1000
