"""The page with the Fine-tune button: what to train on and how, and what it will do with this data."""

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import ApiClient, ApiError, path
from console.context import CurrentClient, CurrentViewer, see_other
from console.knobs import GROUPS, KNOBS, STARTS, Fields, request_of
from console.rendering import render
from console.sign_in import parse_fields, read_fields

router = APIRouter()

# Of folders on one page; others are found by their name.
_FOLDERS = 100
# Below these a training is too short, or a verdict too unsure (docs/decisions.md).
_FEW_STEPS, _FEW_HELD_OUT, _FEW_OF_A_FOLDER = 50, 20, 20


@router.get("/console/fine-tune")
async def form(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """The form, filled in by the address."""
    del viewer
    return await _form(request, client, _query(request))


@router.get("/console/fine-tune/folders")
async def folders(request: Request, client: CurrentClient, viewer: CurrentViewer, search: str = "") -> Response:
    """The folders to choose from: the part of the form that the search and the dates change."""
    del viewer
    return render(request, "fine_tune_folders.html", **await _folders(client, _query(request), search))


@router.get("/console/fine-tune/preview")
async def preview(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """What a request would train on: the right half."""
    del viewer
    body = request_of(_query(request))
    try:
        found = await client.post("/previews", body)
    except ApiError as error:
        if error.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.SERVICE_UNAVAILABLE}:
            raise
        # Beside their fields, as far as these have one; a part of a page is no page of errors.
        return render(request, "fine_tune_preview.html", preview=None, lines=error.lines, hints=error.fields)
    hard = body.get("dataset", {}).get("hard_negatives", KNOBS["dataset.hard_negatives"].default)
    return render(request, "fine_tune_preview.html", preview=found, lines=[], hints=hints(found, body), hard=hard)


@router.post("/console/fine-tune")
async def submit(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """Ask for a training."""
    del viewer
    fields = await read_fields(request)
    try:
        made = await client.post("/requests", request_of(fields))
    except ApiError as error:
        if error.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT}:
            raise
        return await _form(request, client, fields, error)
    return see_other(f"/console/jobs{path(made['model'], made['request_id'])}")


def hints(preview: dict[str, Any], body: dict[str, Any]) -> dict[str, str]:
    """By field, what of a selection fights the data: the names of words."""
    training = preview["training"]
    found: dict[str, str] = {}
    if training["examples"] < body.get("training", {}).get("batch_size", KNOBS["training.batch_size"].default):
        found["training.batch_size"] = "batch_above_examples"
    if training["steps"] < _FEW_STEPS:
        found["training.epochs"] = "few_steps"
    if training["held_out"] < _FEW_HELD_OUT:
        found["data.folders"] = "few_held_out"
    elif any(folder["examples"] < _FEW_OF_A_FOLDER for folder in preview["folders"]):
        found["data.folders"] = "small_folders"
    return found


async def _form(request: Request, client: ApiClient, fields: Fields, error: ApiError | None = None) -> Response:
    models = await client.get("/models", limit=200)
    return render(
        request,
        "fine_tune.html",
        HTTPStatus.OK if error is None else error.status,
        fields=fields,
        groups=GROUPS,
        starts=STARTS,
        models=[model["model"] for model in models["items"]],
        errors=error.fields if error else {},
        # Those that belong to no field that is shown.
        lines=error.lines if error and not error.fields else [],
        **await _folders(client, fields, ""),
    )


async def _folders(client: ApiClient, fields: Fields, search: str) -> dict[str, Any]:
    data = request_of(fields)["data"]
    chosen = data.get("folders", [])
    since, until = (data.get(name, "")[:10] or None for name in ("start", "end"))
    days: list[dict[str, Any]] = []
    try:
        days = (await client.get("/logs-per-day", folder=chosen if len(chosen) <= _FOLDERS else None))["items"]
        found = await client.get("/folders", limit=_FOLDERS, newest_days=0, search=search, since=since, until=until)
    except ApiError as error:
        # Half a date, while it is typed; or no figures at the moment, without which a form can be sent all the same.
        if error.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE}:
            raise
        found = {"items": [], "next": None, "error": error.lines[0]}
    items = found["items"]
    listed = {folder["folder_id"] for folder in items}
    return {
        "folders": items,
        "chosen": chosen,
        # Chosen, and not among those that are listed: they stay chosen.
        "others": [name for name in chosen if name not in listed],
        "are_all": found["next"] is None,
        "days": [(day["day"], day["logs"]) for day in days],
        "folders_error": found.get("error"),
        "search": search,
    }


def _query(request: Request) -> Fields:
    return parse_fields(request.url.query)
