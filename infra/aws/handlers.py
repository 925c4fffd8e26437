"""The AWS Lambda functions: each takes what has happened and calls the part of foldtune that knows what to do.

What a function needs, beside a network to the brokers and its log group (S3 keys are below the bucket; reading a key
that may be missing needs ``s3:ListBucket`` on its prefix, or S3 answers 403):

``launch``       events of ``training-jobs`` and ``fine-tune-status``, partial batch responses on.
                 S3 read, write, list ``jobs/ spend/ statuses/``; ``batch:SubmitJob`` on the queue and the definition,
                 ``batch:TerminateJob`` on jobs, ``batch:ListJobs`` and ``batch:DescribeJobs``.
                 Kafka: writes ``training-reports``, ``dead-letters``.
``batch_state``  ``Batch Job State Change`` events of the queue; what it raises, Lambda tries twice more, then keeps.
                 S3 read, write, list ``jobs/ spend/``. Kafka: writes ``training-reports``.
``api``          ``POST /requests`` and ``GET /requests/{id}`` of an HTTP API with a JWT authorizer.
                 S3 read, list ``statuses/``. Kafka: writes ``fine-tune-requests``.
``schedule``     events of a schedule, as they are. Kafka: writes ``fine-tune-requests``.

All read the Kafka secrets (``secretsmanager:GetSecretValue``) at each use, so that a rotation needs nobody's help.
Settings are the usual ``FOLDTUNE_…`` variables: the sections ``kafka`` and ``s3``; ``batch`` and
``trainer.max_attempts`` for the first two, ``schedule`` for the last.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from api.errors import BodyError, UnknownFieldsError
from api.requests import MAX_BODY_BYTES, request_of
from foldtune.dead_letters import send_dead_letter
from foldtune.errors import TRANSIENT_ERRORS
from foldtune.events import Event, FineTuneRequested, FineTuneStatus, RequestId, State, TrainingJob, now
from foldtune.kafka import DELIVERY_SECONDS, Publisher
from foldtune.logs import configure_logs
from foldtune.object_store import S3ObjectStore
from foldtune.reasons import reasons_of
from foldtune.reports import publish_report
from foldtune.secrets import kafka_with_secrets
from foldtune.settings import Settings, load_settings
from foldtune.topics import Topic
from infra.aws.lambda_events import Context, HttpRequest, KafkaEvent, KafkaRecord, ScheduledEvent, StateChange
from infra.aws.status_store import StatusObjects
from launchers.batch.dispatcher import Dispatcher
from launchers.batch.launcher import BatchLauncher
from launchers.port import RunBusyError

log = structlog.get_logger(__name__)

# Less than this is not enough to begin with another record.
RESERVE_SECONDS = 10.0
# Lambda delivers again at once, a hundred times at most; a launch that was cut short takes minutes to be surely gone,
# and brokers or AWS to be there again.
PAUSE_SECONDS = 20.0
# The API's function has 28 s in all, of which finding the brokers may take eight.
API_DELIVERY_SECONDS = 15
_REQUEST_ID: TypeAdapter[str] = TypeAdapter(RequestId)

GetPublisher = Callable[[], Publisher]

if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
    configure_logs(load_settings())


# ── launch ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def launch(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """Launch jobs and end those whose request has ended; says which records are to be delivered again."""
    settings = load_settings()
    failed: list[dict[str, Any]] = []
    with _publishing(settings) as publisher:
        taker = _Taker(settings, publisher, context)
        for name, records in KafkaEvent.model_validate(event).records.items():
            for record in records:
                try:
                    taker.take(record)
                except Exception as error:
                    # Also of a defect: one record's trouble is not its neighbours'.
                    expected = isinstance(error, (RunBusyError, *TRANSIENT_ERRORS))
                    where = {"partition": name, "offset": record.offset}
                    log.warning("to be delivered again", **where, error=str(error), exc_info=not expected)
                    failed.append({"itemIdentifier": where})
    if failed:
        time.sleep(max(0.0, min(PAUSE_SECONDS, _seconds_left(context) - RESERVE_SECONDS)))
    return {"batchItemFailures": failed}


class _Taker:
    """Takes records, one at a time."""

    def __init__(self, settings: Settings, publisher: GetPublisher, context: Context) -> None:
        prefix = settings.kafka.topic_prefix
        store = S3ObjectStore(settings.s3)
        self._publisher = publisher
        self._context = context
        self._statuses = StatusObjects(store)
        self._dispatcher = Dispatcher(settings, store, BatchLauncher(settings, store), _report(publisher))
        self._takers: dict[str, tuple[type[Event], Callable[[KafkaRecord, Any], None]]] = {
            Topic.TRAINING_JOBS.named(prefix): (TrainingJob, self._take_job),
            Topic.FINE_TUNE_STATUS.named(prefix): (FineTuneStatus, self._take_status),
        }

    def take(self, record: KafkaRecord) -> None:
        """Do what a record asks for; one that cannot be read goes to the dead letters.

        Raises:
            RunBusyError: it is not the time for it.
        """
        if _seconds_left(self._context) < RESERVE_SECONDS:
            raise RunBusyError(record.topic, record.partition, record.offset)
        if record.value is None:
            return
        if record.topic not in self._takers:
            msg = f"this function takes {' and '.join(self._takers)}, not {record.topic}"
            raise ValueError(msg)
        kind, taker = self._takers[record.topic]
        try:
            event = kind.model_validate_json(record.value)
        except ValidationError as error:
            reasons = "; ".join(reasons_of(error))
            send_dead_letter(self._publisher(), record, reasons)
            self._publisher().flush()
            where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            log.warning("dead letter", **where, error=reasons)
            return
        taker(record, event)

    def _take_job(self, _: KafkaRecord, job: TrainingJob) -> None:
        self._dispatcher.launch(job, now() + timedelta(seconds=_seconds_left(self._context)))

    def _take_status(self, record: KafkaRecord, status: FineTuneStatus) -> None:
        self._statuses.keep(status, record.partition, record.offset)
        # Nobody waits for the job any more: it was cancelled, or given up after its time. One that has ended stays so.
        if status.state.terminal and status.state is not State.COMPLETED:
            self._dispatcher.cancel(status.model, status.request_id)


# ── batch_state ──────────────────────────────────────────────────────────────────────────────────────────────────────


def batch_state(event: dict[str, Any], context: Context) -> None:
    """Report how a job of AWS Batch stands; what is raised, Lambda tries twice more and then puts into a queue."""
    settings = load_settings()
    store = S3ObjectStore(settings.s3)
    with _publishing(settings) as publisher:
        dispatcher = Dispatcher(settings, store, BatchLauncher(settings, store), _report(publisher))
        dispatcher.state_changed(StateChange.model_validate(event).detail)


# ── api ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def api(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """Publish a request, or tell how one stands."""
    call = HttpRequest.model_validate(event)
    if call.caller is None:
        return _answer(401, {"errors": ["a token is needed"]})
    try:
        if call.route_key == "POST /requests":
            return _ask(call, call.caller)
        if call.route_key == "GET /requests/{id}":
            return _tell((call.path_parameters or {}).get("id", ""))
    except TRANSIENT_ERRORS as error:
        log.warning("not available", route=call.route_key, error=str(error))
        return _answer(503, {"errors": ["not available at the moment; the same call may be made again"]})
    return _answer(404, {"errors": [f"no such route: {call.route_key}"]})


def _ask(call: HttpRequest, caller: str) -> dict[str, Any]:
    text = call.body or ""
    body = base64.b64decode(text) if call.is_base64_encoded else text.encode()
    if len(body) > MAX_BODY_BYTES:
        return _answer(413, {"errors": [f"body: {len(body)} bytes, at most {MAX_BODY_BYTES}"]})
    try:
        request = request_of(body, caller)
    except ValidationError as error:
        return _answer(400, {"errors": list(reasons_of(error))})
    except (BodyError, UnknownFieldsError) as error:
        return _answer(400, {"errors": [str(error)]})
    try:
        with _publishing(load_settings(), API_DELIVERY_SECONDS) as publisher:
            publisher().publish(Topic.FINE_TUNE_REQUESTS, request, key=request.model)
    except TRANSIENT_ERRORS as error:
        log.warning("request not published", error=str(error))
        # It may have been taken all the same; sent again under its name, it is not taken twice.
        reason = "not available at the moment; the same request may be sent again, with this request_id"
        return _answer(503, {"errors": [reason], "request_id": request.request_id})
    return _answer(202, {"request_id": request.request_id, "model": request.model})


def _tell(request_id: str) -> dict[str, Any]:
    try:
        name = _REQUEST_ID.validate_python(request_id)
    except ValidationError as error:
        return _answer(400, {"errors": list(reasons_of(error))})
    status = StatusObjects(S3ObjectStore(load_settings().s3)).newest(name)
    if status is None:
        return _answer(404, {"errors": [f"no request {name!r} is known (yet)"]})
    return _answer(200, status.model_dump(mode="json", exclude_none=True))


def _answer(code: int, content: dict[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    return {"statusCode": code, "headers": headers, "body": json.dumps(content)}


# ── schedule ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def schedule(event: dict[str, Any], context: Context) -> None:
    """Ask for each of the configured models, once for a turn of the schedule."""
    turn = ScheduledEvent.model_validate(event).time
    settings = load_settings()
    with _publishing(settings) as publisher:
        for model in settings.schedule.models:
            request = FineTuneRequested(
                request_id=f"schedule-{model}-{turn:%Y%m%dT%H%M%S}",
                model=model,
                requested_at=turn,
                requested_by="schedule",
                origin="policy",
            )
            publisher().send(Topic.FINE_TUNE_REQUESTS, request, key=model)
        if settings.schedule.models:
            publisher().flush()


# ── What they share ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _publishing(settings: Settings, delivery_seconds: int = DELIVERY_SECONDS) -> Iterator[GetPublisher]:
    """A publisher that connects when it is first asked for.

    It does not outlive the call: between two calls a function is frozen, its connections die and its secrets change.
    """
    with ExitStack() as stack:
        made: list[Publisher] = []

        def publisher() -> Publisher:
            if not made:
                kafka = stack.enter_context(kafka_with_secrets(settings))
                made.append(stack.enter_context(Publisher(kafka, delivery_seconds)))
            return made[0]

        yield publisher


def _report(publisher: GetPublisher) -> Callable[[FineTuneStatus], None]:
    return lambda status: publish_report(publisher(), status)


def _seconds_left(context: Context) -> float:
    return context.get_remaining_time_in_millis() / 1000
