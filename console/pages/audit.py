"""Who did what."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.context import CurrentClient, CurrentViewer
from console.rendering import following, render

router = APIRouter()


@router.get("/console/audit")
async def list_audit(  # noqa: PLR0917  each is a parameter of the query
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    who: str = "",
    action: str = "",
    cursor: str | None = None,
) -> Response:
    """Changes, and reads of users' texts, the newest first."""
    del viewer
    found = await client.get("/audit", who=who or None, action=action or None, cursor=cursor)
    next_page = following(found["next"], who=who, action=action)
    return render(request, "audit.html", entries=found["items"], who=who, action=action, next=next_page)
