"""Folders: what there is to train on."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import path
from console.context import CurrentClient, CurrentViewer
from console.rendering import following, render

router = APIRouter()


@router.get("/console/folders")
async def list_folders(
    request: Request, client: CurrentClient, viewer: CurrentViewer, search: str = "", cursor: str | None = None
) -> Response:
    """All folders, with their usable examples."""
    del viewer
    found = await client.get("/folders", search=search, cursor=cursor)
    return render(
        request,
        "folders.html",
        folders=found["items"],
        as_of=found["as_of"],
        pending=found["pending"],
        search=search,
        next=following(found["next"], search=search),
    )


@router.get("/console/folders/{folder:path}")
async def show_folder(request: Request, client: CurrentClient, viewer: CurrentViewer, folder: str) -> Response:
    """A folder by day, label and agent, and what is left out."""
    del viewer
    found = await client.get(path("folders", folder))
    days = [(day["day"], day["examples"]) for day in found["days"]]
    return render(request, "folder.html", folder=found, days=days)
