"""``/requests``, and ``/models/MODEL/requests``: a request is its model and id together."""

import asyncio
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from aiokafka.errors import KafkaError
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from api.access import Access
from api.artifacts import newest_log
from api.bodies import read_body
from api.context import CurrentAccess, CurrentServices, Services
from api.cursors import decode_cursor, encode_cursor
from api.etags import is_named
from api.parameters import Cursor, IfNoneMatch, Limit, PathModel
from api.problems import ProblemError, unavailable
from api.schemas import Accepted, RequestList, RequestLog, RequestTime, TrainingEstimate, json_body
from api.submission import (
    MAX_BODY_BYTES,
    RequestBody,
    asked_otherwise,
    cancellation,
    creation_entry,
    differences,
    new_request_id,
    perhaps_published,
    request_not_found,
    request_of,
)
from api.view.follower import read_record
from api.view.requests import Place, SortKey, StatusEntry
from foldtune.events import FineTuneRequested, FineTuneStatus, RequestId, State, now
from foldtune.knobs import ModelName, WrittenTime
from foldtune.topics import Topic

router = APIRouter(tags=["requests"])

PathId = Annotated[RequestId, Path(alias="id")]

# Proxies close connections on which nothing comes for a minute.
_KEEP_ALIVE_SECONDS = 15.0
# Then a follower asks again, after what it has seen, and its token is checked again.
_MAX_STREAM_SECONDS = 900.0
_LAST_EVENT_ID = r"^[0-9]{1,19}$"

# The state of a request whose job is published (``FineTuneStatus.states``).
_QUEUED = "queued"

_log = structlog.get_logger(__name__)


@router.post(
    "/requests", status_code=HTTPStatus.ACCEPTED, response_model=Accepted, openapi_extra=json_body(RequestBody)
)
async def create_request(request: Request, access: CurrentAccess, services: CurrentServices) -> Accepted:
    """Ask for a fine-tuned model. Sent again under its id, it is the same request; another one is refused (409)."""
    return await _submit(request_of(await read_body(request, RequestBody), access), access, services)


@router.get("/requests", response_model=RequestList)
async def list_requests(  # noqa: PLR0917  each is a parameter of the query
    access: CurrentAccess,
    services: CurrentServices,
    model: Annotated[ModelName | None, Query()] = None,
    state: Annotated[list[State] | None, Query(max_length=len(State))] = None,
    since: Annotated[WrittenTime | None, Query(description="Earliest time of the newest status")] = None,
    until: Annotated[WrittenTime | None, Query(description="Time before which the newest status is")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """The newest status of each request, the newest first."""
    first, last = (None if moment is None else moment.timestamp() for moment in (since, until))

    def keep(entry: StatusEntry) -> bool:
        return (
            (state is None or entry.state in state)
            and (first is None or entry.at >= first)
            and (last is None or entry.at < last)
        )

    models = access.models if model is None else {model} & (access.models or {model})
    page = services.view.requests.page(limit, keep, decode_cursor(SortKey, cursor), models)
    # The statuses are JSON already.
    items = b",".join(entry.json for entry in page.entries)
    after = encode_cursor(page.after)
    following = b"null" if after is None else b'"%s"' % after.encode()
    return Response(b'{"items":[%s],"next":%s}' % (items, following), media_type="application/json")


@router.get("/requests/{id}", response_model=FineTuneStatus)
async def get_request(
    access: CurrentAccess,
    services: CurrentServices,
    request_id: PathId,
    model: Annotated[ModelName | None, Query()] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The newest status of a request; without a model of the one that was told of last, where several use the id."""
    entry = services.view.requests.find(
        request_id, lambda entry: model in {None, entry.model} and access.covers(model=entry.model)
    )
    return _status(_found(entry, model, request_id), if_none_match)


@router.get("/models/{model}/requests/{id}", response_model=FineTuneStatus)
async def get_models_request(
    services: CurrentServices,
    model: PathModel,
    request_id: PathId,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The newest status of a model's request."""
    return _status(_entry(services, model, request_id), if_none_match)


@router.get("/models/{model}/requests/{id}/request", response_model=FineTuneRequested)
async def get_original(
    access: CurrentAccess, services: CurrentServices, model: PathModel, request_id: PathId
) -> Response:
    """The request as it was made."""
    original = await _original(services, model, request_id)
    access.require(model=model, folders=original.data.folders)
    return Response(original.encode(), media_type="application/json")


@router.get("/models/{model}/requests/{id}/time", response_model=RequestTime)
async def get_time(services: CurrentServices, model: PathModel, request_id: PathId) -> RequestTime:
    """How long its job was estimated to take, and took, however it has ended."""
    try:
        status = _entry(services, model, request_id).status()
    except ValidationError as error:
        reason = f"the status of request {request_id!r} of model {model!r} is not valid"
        raise ProblemError(HTTPStatus.CONFLICT, reason) from error
    published = next((state.at for state in status.states if state.state == _QUEUED), None)
    began = next((state.at for state in status.states if state.state == State.RUNNING), None)
    seconds = ((status.at if status.state.terminal else now()) - began).total_seconds() if began else None
    past, planned = services.view.models.past_trainings, status.planned
    estimate = planned and past.estimate(planned.base_model, planned.trainable_layers, planned.examples, published)
    price = estimate.cost_dollars / estimate.seconds if estimate and estimate.cost_dollars is not None else None
    return RequestTime(
        estimate=TrainingEstimate.model_validate(estimate) if estimate else None,
        seconds=seconds,
        cost_dollars=None if price is None or seconds is None else price * seconds,
        ended=status.state.terminal,
    )


@router.get("/models/{model}/requests/{id}/log", response_model=RequestLog)
async def get_log(access: CurrentAccess, services: CurrentServices, model: PathModel, request_id: PathId) -> RequestLog:
    """The end of its newest attempt's log, where the launcher keeps it on the object store."""
    _entry(services, model, request_id)
    await _require_named(access, services, model, request_id)
    log = await asyncio.to_thread(newest_log, services.store, model, request_id)
    if log is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"request {request_id!r} of model {model!r} has no log here (yet)")
    return RequestLog(**log._asdict())


@router.get(
    "/models/{model}/requests/{id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Server-sent events: each `data` is a status", "content": {"text/event-stream": {}}},
        204: {"description": "The request has ended, and its last status was received"},
    },
)
async def follow_request(
    access: CurrentAccess,
    services: CurrentServices,
    model: PathModel,
    request_id: PathId,
    last_event_id: Annotated[str | None, Header(pattern=_LAST_EVENT_ID)] = None,
) -> Response:
    """Follow a request to its end: its newest status now, then each later one; of several at once only the last."""
    entry = _entry(services, model, request_id)
    seen = -1 if last_event_id is None else int(last_event_id)
    if entry.terminal and entry.offset <= seen:
        # To a browser's EventSource the only answer that keeps it from asking again.
        return Response(status_code=HTTPStatus.NO_CONTENT)
    services.rate_limit.check_streams(access.caller)
    return StreamingResponse(_counted(access, services, entry, seen), media_type="text/event-stream")


@router.post("/models/{model}/requests/{id}/cancel", status_code=HTTPStatus.ACCEPTED, response_model=Accepted)
async def cancel_request(
    access: CurrentAccess,
    services: CurrentServices,
    model: PathModel,
    request_id: PathId,
) -> Accepted:
    """Cancel a request that has not ended."""
    entry = _entry(services, model, request_id)
    await _require_named(access, services, model, request_id)
    audited, event = cancellation(access.caller, model, request_id, entry.state)
    await services.audit.write(audited)
    await services.publisher.publish(Topic.FINE_TUNE_REQUESTS, event, model)
    return Accepted(request_id=request_id, model=model)


@router.post("/models/{model}/requests/{id}/retry", status_code=HTTPStatus.ACCEPTED, response_model=Accepted)
async def retry_request(
    access: CurrentAccess,
    services: CurrentServices,
    model: PathModel,
    request_id: PathId,
) -> Accepted:
    """Ask again for what a request that failed, was rejected or cancelled asked for, under a new id."""
    entry = _entry(services, model, request_id)
    if not entry.terminal or entry.state is State.COMPLETED:
        raise ProblemError(HTTPStatus.CONFLICT, f"request {request_id!r} of model {model!r} is {entry.state}")
    original = await _original(services, model, request_id)
    access.require(model=model, folders=original.data.folders)
    changes = {
        "request_id": new_request_id(),
        "requested_at": now(),
        "requested_by": access.caller.name,
        "origin": "api",
    }
    return await _submit(original.model_copy(update=changes), access, services, retry_of=request_id)


async def _require_named(access: Access, services: Services, model: str, request_id: str) -> None:
    """A grant that is limited to folders covers what names no others."""
    if not access.covers(model=model, folders=None):
        access.require(model=model, folders=(await _original(services, model, request_id)).data.folders)


async def _submit(
    event: FineTuneRequested, access: Access, services: Services, retry_of: str | None = None
) -> Accepted:
    accepted = Accepted(request_id=event.request_id, model=event.model)
    bound = min(MAX_BODY_BYTES, services.settings.bounds.event_bytes)
    if (size := len(event.encode())) > bound:
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"body: as an event it has {size} bytes, at most {bound}")
    # The coordinator would answer with the first one's status, whatever this one asks for.
    is_known = services.view.requests.get(event.model, event.request_id) is not None
    await _require_same(event, services, is_known=is_known)
    if is_known:
        return accepted
    try:
        await services.audit.write(creation_entry(access.caller, event, retry_of))
        await services.publisher.publish(Topic.FINE_TUNE_REQUESTS, event, event.model)
    except ProblemError as error:
        raise perhaps_published(event.request_id) from error
    return accepted


async def _require_same(event: FineTuneRequested, services: Services, *, is_known: bool) -> None:
    """Raises ``ProblemError`` (409) if the first request under this id has asked for something else."""
    place = services.view.find_place(event.model, event.request_id, complete=is_known)
    record = place and await _read(services, place)
    # One that is not on the topic any more cannot be compared.
    if record is not None and (different := differences(event, record.value)):
        raise asked_otherwise(event, different)


async def _original(services: Services, model: str, request_id: str) -> FineTuneRequested:
    place = services.view.find_place(model, request_id)
    record = place and await _read(services, place)
    if record is None:
        reason = f"what request {request_id!r} of model {model!r} asked for is not on fine-tune-requests (any more)"
        raise ProblemError(HTTPStatus.NOT_FOUND, reason)
    try:
        return FineTuneRequested.model_validate_json(record.value)
    except ValidationError as error:
        reason = f"what request {request_id!r} of model {model!r} asked for is not valid"
        raise ProblemError(HTTPStatus.CONFLICT, reason) from error


async def _read(services: Services, place: Place) -> Any | None:
    try:
        return await read_record(services.settings.kafka, Topic.FINE_TUNE_REQUESTS, *place)
    except (KafkaError, TimeoutError) as error:
        raise unavailable() from error


async def _counted(access: Access, services: Services, entry: StatusEntry, seen: int) -> AsyncIterator[bytes]:
    with services.rate_limit.stream(access.caller):
        async for event in _events(services, entry, seen):
            yield event


async def _events(services: Services, entry: StatusEntry, seen: int) -> AsyncIterator[bytes]:
    model, request_id = entry.model, entry.request_id
    deadline = time.monotonic() + _MAX_STREAM_SECONDS
    sent = b""
    with services.view.requests.watch(model, request_id) as changed:
        while time.monotonic() < deadline and not services.view.requests.ends:
            changed.clear()
            newest = services.view.requests.get(model, request_id)
            if newest and (newest.offset > seen or newest.terminal):
                seen = newest.offset
                # Each is on the topic under two keys, the same bytes.
                if newest.json != sent:
                    sent = newest.json
                    # Between its parts JSON may have line ends, which would be the event's.
                    data = sent.translate(None, b"\r\n")
                    yield b"id: %d\nevent: status\ndata: %s\n\n" % (newest.offset, data)
                if newest.terminal:
                    return
            try:
                await asyncio.wait_for(changed.wait(), _KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield b": nothing new\n\n"


def _entry(services: Services, model: str, request_id: str) -> StatusEntry:
    return _found(services.view.requests.get(model, request_id), model, request_id)


def _found(entry: StatusEntry | None, model: str | None, request_id: str) -> StatusEntry:
    if entry is None:
        raise request_not_found(request_id, model)
    return entry


def _status(entry: StatusEntry, if_none_match: str | None) -> Response:
    headers = {"etag": entry.etag, "cache-control": "private, no-cache"}
    if if_none_match is not None and is_named(entry.etag, if_none_match):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(entry.json, media_type="application/json", headers=headers)
