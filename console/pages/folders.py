"""Folders: what there is to train on."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from console.api_client import path
from console.context import CurrentClient, CurrentViewer, Viewer
from console.pages.fine_tune import example_key
from console.pages.time_bars import bars_of, newest_days
from console.rendering import following, render

router = APIRouter()

_NEWEST_DAYS = 30
# Those of examples, the most frequent first.
_LABELS = ("cited", "liked", "corrected")
# A preview is of a model, and what it shows of a folder is the same of each.
_ANY_MODEL = "sample"


@router.get("/console/folders")
async def list_folders(
    request: Request, client: CurrentClient, viewer: CurrentViewer, search: str = "", cursor: str | None = None
) -> Response:
    """All folders, with their usable examples."""
    del viewer
    found = await client.get("/folders", search=search, cursor=cursor, newest_days=_NEWEST_DAYS)
    return render(
        request,
        "folders.html",
        folders=[(folder, *newest_days(folder, _NEWEST_DAYS)) for folder in found["items"]],
        as_of=found["as_of"],
        pending=found["pending"],
        search=search,
        next=following(found["next"], search=search),
    )


@router.get("/console/folders/{folder:path}")
async def show_folder(request: Request, client: CurrentClient, viewer: CurrentViewer, folder: str) -> Response:
    """A folder over time, by label and agent, and what is left out."""
    del viewer
    found: dict[str, Any] = await client.get(path("folders", folder))
    newest = found["newest_log_at"]
    return render(
        request,
        "folder.html",
        folder=found,
        bars=bars_of(found["days"], _known_first(found["labels"])),
        age=(datetime.now(UTC) - datetime.fromisoformat(newest)).total_seconds() if newest else None,
    )


@router.get("/console/folder-sample")
async def read_sample(
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    folder: Annotated[str, Query(min_length=1, max_length=256)],
) -> Response:
    """Questions of a folder, for those who may read them."""
    found = await client.post("/previews", {"model": _model_of(viewer), "data": {"folders": [folder]}})
    return render(request, "folder_sample.html", preview=found, folder=folder, key=example_key)


def _known_first(labels: dict[str, int]) -> list[str]:
    return [*_LABELS, *sorted(set(labels) - {*_LABELS, "disliked"})]


def _model_of(viewer: Viewer) -> str:
    return (viewer.routes.get("POST /previews") or [_ANY_MODEL])[0]
