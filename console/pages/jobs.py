"""Requests and their jobs."""

import re
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, FiniteFloat, ValidationError
from starlette.responses import Response

from console.api_client import ApiClient, ApiError, Forwarded, path
from console.context import CurrentClient, CurrentConsole, CurrentSession, CurrentViewer, see_other
from console.knobs import address, fields_of
from console.rendering import following, render
from foldtune.events import FineTuneRequested, FineTuneStatus

router = APIRouter()

# Of a model's address on the object store (foldtune.object_keys).
_VERSION = re.compile(r"\bmodels/[^/]+/([^/]+)")


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
    found = await client.get("/requests", model=model or None, state=states or None, cursor=cursor)
    return render(
        request,
        "jobs.html",
        jobs=[FineTuneStatus.model_validate(item, strict=False) for item in found["items"]],
        next=following(found["next"], model=model or "", state=states),
        model=model or "",
        states=states,
    )


@router.get("/console/jobs/{model}/{request_id}")
async def show_job(
    request: Request, client: CurrentClient, viewer: CurrentViewer, model: str, request_id: str
) -> Response:
    """A job: how far it is, and in the end what has come of it."""
    del viewer
    values = await _progress(client, model, request_id)
    asked = await _optional(client, path("models", model, "requests", request_id, "request"))
    knobs = asked and FineTuneRequested.model_validate(asked, strict=False).model_dump()
    again = knobs and address(fields_of(asked))
    return render(request, "job.html", asked=knobs, again=again, **values)


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


async def _progress(client: ApiClient, model: str, request_id: str) -> dict[str, Any]:
    found = await client.get(path("models", model, "requests", request_id))
    status = FineTuneStatus.model_validate(found, strict=False)
    version = await _version(client, status)
    return {
        "job": status,
        "times": state_times(status),
        "epochs": list(enumerate(status.validation_curve, start=1)),
        "version": version,
        "folders": await _folder_scores(client, status, version),
    }


class StateSpan(NamedTuple):
    """A state that a request has been in, and for how long; ``None`` of the present one."""

    state: str
    at: datetime
    seconds: float | None


def state_times(status: FineTuneStatus) -> list[StateSpan]:
    """The states so far."""
    ends = (*(later.at for later in status.states[1:]), None)
    return [
        StateSpan(begun.state, begun.at, None if end is None else (end - begun.at).total_seconds())
        for begun, end in zip(status.states, ends, strict=False)
    ]


async def _version(client: ApiClient, status: FineTuneStatus) -> dict[str, Any] | None:
    """The version that a completed request has made."""
    found = _VERSION.search(status.model_uri or "")
    if found is None:
        return None
    version: dict[str, Any] | None = await _optional(client, path("models", status.model, "versions", found[1]))
    return version


class _Scores(BaseModel):
    ndcg_at_10: FiniteFloat


class FolderScores(BaseModel):
    """Of a folder's held-out questions."""

    questions: int
    before: _Scores
    after: _Scores


class _Metrics(BaseModel):
    folders: dict[str, FolderScores] = {}


async def _folder_scores(
    client: ApiClient, status: FineTuneStatus, version: dict[str, Any] | None
) -> dict[str, FolderScores]:
    """Those of the version's ``metrics.json``, which is any text, as far as the API knows."""
    if version is None:
        return {}
    found = await _optional(client, path("models", status.model, "versions", version["version"], "metrics"))
    try:
        return _Metrics.model_validate(found).folders
    except ValidationError:
        return {}


async def _optional(client: ApiClient, address: str) -> Any:
    try:
        return await client.get(address)
    except ApiError as error:
        # A page without it says more than none.
        if error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}:
            raise
        return None
