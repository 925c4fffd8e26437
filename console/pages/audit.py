"""Who did what."""

from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import ApiError, path
from console.context import CurrentClient, CurrentViewer
from console.pages.differences import Difference, differences
from console.rendering import following, render

router = APIRouter()


class Entry(NamedTuple):
    """An entry of the audit, as its page shows it."""

    entry: dict[str, Any]
    # Of what it is about; ``None`` where no page is.
    address: str | None
    # The API's route of that page.
    route: str
    changes: list[Difference]


@router.get("/console/audit")
async def list_audit(  # noqa: PLR0917  each is a parameter of the query
    request: Request,
    client: CurrentClient,
    viewer: CurrentViewer,
    who: str = "",
    action: str = "",
    model: str = "",
    cursor: str | None = None,
) -> Response:
    """Changes, and reads of users' texts, the newest first."""
    del viewer
    shown = {"who": who.strip(), "action": action.strip(), "model": model.strip()}
    try:
        found = await client.get("/audit", cursor=cursor, **{name: text or None for name, text in shown.items()})
    except ApiError as error:
        if error.status is not HTTPStatus.BAD_REQUEST:
            raise
        return render(request, "audit.html", error.status, entries=[], shown=shown, next=None, lines=error.lines)
    entries = [told(entry) for entry in found["items"]]
    after = following(found["next"], **shown)
    return render(request, "audit.html", entries=entries, shown=shown, next=after, lines=[])


def told(entry: dict[str, Any]) -> Entry:
    """An entry with the page of what it is about, and the fields that it changed."""
    before, after = entry.get("before"), entry.get("after")
    changes = differences(before, after)
    kind, model, target = entry["action"].partition(".")[0], entry.get("model"), entry["target"]
    own = target.removeprefix(f"{model}/") if model else target
    pages = {
        "request": ("GET /models/{model}/requests/{id}", "jobs", (model, own)),
        "version": ("GET /models/{model}/versions/{version}", "models", (model, "versions", own)),
        "evaluation": ("GET /models/{model}/versions/{version}", "models", (model, "versions", own)),
        "policy": ("GET /policies/{model}", "policies", (model,)),
        "dead_letter": ("GET /dead-letters/{id}/value", "dead-letters", (target, "value")),
        "erasure": ("GET /erasures/{id}", "privacy", (target,)),
    }
    route, page, parts = pages.get(kind, ("", "", ()))
    if not page or None in parts:
        return Entry(entry, None, "", changes)
    return Entry(entry, f"/console/{page}{path(*(part for part in parts if part))}", route, changes)
