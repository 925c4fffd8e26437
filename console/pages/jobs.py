"""Requests and their jobs."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from console.api_client import ApiClient, ApiError, Forwarded, path
from console.context import CurrentClient, CurrentConsole, CurrentSession, CurrentViewer, see_other
from console.knobs import address as form_address
from console.knobs import changed_knobs, fields_of
from console.pages.verdicts import Metrics, beyond_chance, chart, verdict
from console.rendering import following, render, words
from foldtune.events import FineTuneRequested, FineTuneStatus, now

router = APIRouter()

# Of a model's address on the object store (foldtune.object_keys), whatever bucket and prefix are called.
_VERSION = re.compile(r"/models/[^/]+/([^/]+)/runs/[^/]+$")
# Of a log's end, which may have a line for every other byte.
_MAX_LINES = 2_000


@router.get("/console/jobs")
async def list_jobs(  # noqa: PLR0917  each is a parameter of the query
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    model: str | None = None,
    state: Annotated[list[str], Query()] = [],  # noqa: B006  FastAPI copies it
    cursor: str | None = None,
) -> Response:
    """The newest status of each request."""
    del viewer
    # A form sends what is not chosen as an empty text.
    states = [name for name in state if name]
    lines: list[str] = []
    try:
        found = await client.get("/requests", model=model or None, state=states or None, cursor=cursor)
    except ApiError as error:
        if error.status is not HTTPStatus.BAD_REQUEST:
            raise
        found, lines = {"items": [], "next": None}, error.lines
    return render(
        request,
        "jobs.html",
        HTTPStatus.BAD_REQUEST if lines else HTTPStatus.OK,
        lines=lines,
        jobs=statuses_of(found["items"]),
        next=following(found["next"], model=model or "", state=states),
        model=model or "",
        states=states,
    )


@router.get("/console/jobs/{model}/{request_id}")
async def show_job(  # noqa: PLR0917  each is a parameter
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    model: str,
    request_id: str,
    new: Annotated[bool, Query(description="Asked for a moment ago")] = False,
) -> Response:
    """A job: how far it is, and in the end what has come of it."""
    del viewer
    try:
        values, asked = await asyncio.gather(
            _progress(client, model, request_id),
            client.optional(path("models", model, "requests", request_id, "request")),
        )
    except ApiError as error:
        if error.status is not HTTPStatus.NOT_FOUND or not new:
            raise
        return render(request, "job_awaited.html", HTTPStatus.ACCEPTED, model=model, request_id=request_id)
    return render(
        request,
        "job.html",
        asked=asked and FineTuneRequested.model_validate(asked, strict=False).model_dump(),
        again=asked and form_address(fields_of(asked)),
        changed=changed_knobs(asked) if asked else [],
        **values,
    )


@router.get("/console/jobs/{model}/{request_id}/awaited")
async def await_job(client: CurrentClient, viewer: CurrentViewer, model: str, request_id: str) -> Response:
    """Leads to a job's page as soon as a worker has told of it."""
    del viewer
    found = await client.optional(path("models", model, "requests", request_id))
    headers = {"hx-redirect": f"/console/jobs{path(model, request_id)}"} if found else {}
    return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)


@router.get("/console/jobs/{model}/{request_id}/progress")
async def show_progress(
    request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, request_id: str
) -> Response:
    """The part of a job's page that changes."""
    del viewer
    return render(request, "job_progress.html", **await _progress(client, model, request_id))


@router.get("/console/jobs/{model}/{request_id}/events")
async def follow_job(
    request: Request, console: CurrentConsole, session: CurrentSession, model: str, request_id: str
) -> Response:
    """The API's stream of statuses."""
    return Forwarded(console.api, request, path("models", model, "requests", request_id, "events"), session)


@router.post("/console/jobs/{model}/{request_id}/cancel")
async def cancel_job(client: CurrentClient, viewer: CurrentViewer, model: str, request_id: str) -> Response:
    """Cancel a request."""
    del viewer
    await client.post(path("models", model, "requests", request_id, "cancel"))
    return see_other(f"/console/jobs{path(model, request_id)}")


@router.post("/console/jobs/{model}/{request_id}/retry")
async def retry_job(client: CurrentClient, viewer: CurrentViewer, model: str, request_id: str) -> Response:
    """Ask again for what a request asked for that has come to nothing."""
    del viewer
    made = await client.post(path("models", model, "requests", request_id, "retry"))
    return see_other(f"/console/jobs{path(made['model'], made['request_id'])}?new=1")


@router.get("/console/jobs/{model}/{request_id}/log")
async def show_log(
    request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, request_id: str
) -> Response:
    """The end of a job's log: a page, or the part of the job's page."""
    del viewer
    found = await client.get(path("models", model, "requests", request_id, "log"))
    lines = log_lines(found["text"])
    return render(request, "job_log.html", log=found, lines=lines, model=model, request_id=request_id)


async def _progress(client: ApiClient, model: str, request_id: str) -> dict[str, Any]:
    found = await client.get(path("models", model, "requests", request_id))
    status = status_of(found)
    if status is None:
        raise ApiError(HTTPStatus.CONFLICT, {"errors": [words()["job"]["unreadable"]]})
    version, time = await asyncio.gather(
        _version(client, status), client.optional(path("models", model, "requests", request_id, "time"))
    )
    values: dict[str, Any] = {
        "job": status,
        "times": state_times(status),
        "epochs": list(enumerate(status.validation_curve, start=1)),
        "version": version,
        "time": time,
        "files": [],
    }
    if version:
        address = path("models", model, "versions", version["version"])
        found, files = await asyncio.gather(client.optional(f"{address}/metrics"), client.optional(f"{address}/files"))
        metrics = Metrics.of(found)
        values |= {
            "files": files["items"] if files else [],
            "metrics_file": metrics,
            "verdict": verdict(version, metrics),
            "forest": chart(version, metrics.folders),
            "beyond": beyond_chance(metrics.folders),
        }
    return values


def status_of(found: Mapping[str, Any]) -> FineTuneStatus | None:
    """A status as it was published: the API looks at what it is listed by, and no further.

    Of one that is not as expected only that is left; ``None`` if that is not either.
    """
    bare = {name: found.get(name) for name in ("request_id", "model", "state", "at")}
    for content in (found, bare | {"reasons": [words()["job"]["unreadable"]]}):
        try:
            return FineTuneStatus.model_validate(content, strict=False)
        except ValidationError:
            continue
    return None


def statuses_of(items: Iterable[Mapping[str, Any]]) -> list[FineTuneStatus]:
    """Those that can be shown."""
    return [status for item in items if (status := status_of(item))]


class StateSpan(NamedTuple):
    """A state that a request has been in, and for how long; ``None`` of the last one, in which it stays."""

    state: str
    at: datetime
    seconds: float | None


def state_times(status: FineTuneStatus) -> list[StateSpan]:
    """The states so far."""
    ends = (*(later.at for later in status.states[1:]), None if status.state.terminal else now())
    return [
        StateSpan(begun.state, begun.at, None if end is None else (end - begun.at).total_seconds())
        for begun, end in zip(status.states, ends, strict=False)
    ]


class LogLine(NamedTuple):
    """A line of a log; what is not in the form of our logs is told as it is."""

    at: datetime | None
    level: str
    text: str


def log_lines(text: str) -> list[LogLine]:
    """The lines of a log, which may be anything."""
    # A record may have other line ends in it.
    return [_log_line(line) for line in list(filter(str.strip, text.split("\n")))[-_MAX_LINES:]]


def _log_line(line: str) -> LogLine:
    try:
        record = json.loads(line)
        at = datetime.fromisoformat(record.pop("timestamp")).astimezone(UTC)
        event, level = str(record.pop("event")), str(record.pop("level"))
        # The page says whose log it is.
        record.pop("request_id", None)
        rest = [f"{name}={value}" for name, value in record.items() if name != "exception"]
        return LogLine(at, level, "\n".join(filter(None, (" ".join((event, *rest)), record.get("exception")))))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return LogLine(None, "", line)


async def _version(client: ApiClient, status: FineTuneStatus) -> dict[str, Any] | None:
    """The version that a completed request has made."""
    found = _VERSION.search(status.model_uri or "")
    if found is None:
        return None
    version: dict[str, Any] | None = await client.optional(path("models", status.model, "versions", found[1]))
    return version
