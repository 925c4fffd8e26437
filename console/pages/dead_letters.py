"""Records that were rejected."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import path
from console.context import CurrentClient, CurrentViewer
from console.rendering import following, render
from console.sign_in import read_fields

router = APIRouter()


@router.get("/console/dead-letters")
async def list_dead_letters(
    request: Request, client: CurrentClient, viewer: CurrentViewer, topic: str = "", cursor: str | None = None
) -> Response:
    """What was rejected, with its cause; some of them can be chosen for a replay."""
    del viewer
    return await _list(request, client, topic, cursor)


@router.get("/console/dead-letters/{letter_id}/value")
async def show_value(request: Request, client: CurrentClient, viewer: CurrentViewer, letter_id: str) -> Response:
    """The bytes of a record: the API audits each read."""
    del viewer
    found = await client.get(path("dead-letters", letter_id, "value"))
    return render(request, "dead_letter_value.html", letter=found)


@router.post("/console/dead-letters/replay")
async def replay(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """Publish records again, where they came from."""
    del viewer
    fields = await read_fields(request)
    done = await client.post("/dead-letters/replay", {"ids": fields.get("ids", [])})
    return await _list(request, client, "", None, done)


async def _list(
    request: Request, client: CurrentClient, topic: str, cursor: str | None, done: object = None
) -> Response:
    found = await client.get("/dead-letters", topic=topic or None, cursor=cursor)
    return render(
        request,
        "dead_letters.html",
        letters=found["items"],
        next=following(found["next"], topic=topic),
        topic=topic,
        done=done,
    )
