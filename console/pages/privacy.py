"""Erasures: what one would touch, asking for it, and how far it has come."""

import asyncio
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.api_client import ApiClient, ApiError, path
from console.context import CurrentClient, CurrentViewer, see_other
from console.rendering import render
from console.sign_in import read_form

router = APIRouter()

_NEWEST = 10
SUBJECTS = ("user", "conversation", "log", "document", "folder", "agent")


@router.get("/console/privacy")
async def form(request: Request, client: CurrentClient, viewer: CurrentViewer, erasure_id: str = "") -> Response:
    """The form of an erasure, and how far the newest ones have come."""
    if erasure_id:
        return see_other(f"/console/privacy{path(erasure_id)}")
    newest = await _newest(client) if viewer.may("GET /audit") else []
    return _form(request, {}, newest=newest)


@router.post("/console/privacy")
async def ask(request: Request, client: CurrentClient, viewer: CurrentViewer) -> Response:
    """A dry run first, which says what would be touched; then, with the id typed once more, the erasure itself."""
    del viewer
    fields = await read_form(request)
    body: dict[str, Any] = {"subject": fields.get("subject", ""), "subject_id": fields.get("subject_id", "")}
    if folder := fields.get("folder_id", "").strip():
        body["folder_id"] = folder
    elif body["subject"] == "document":
        body["all_folders"] = True
    try:
        if "confirmed" not in fields:
            preview = await client.post("/erasures/preview", body)
            return _form(request, fields, affected=preview["folders"])
        if fields["confirmed"] != body["subject_id"]:
            return _form(request, fields, affected=[], differs=True, status=HTTPStatus.BAD_REQUEST)
        asked = await client.post("/erasures", body)
    except ApiError as error:
        if error.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.SERVICE_UNAVAILABLE}:
            raise
        return _form(request, fields, errors=error.fields, lines=error.lines, status=error.status)
    return see_other(f"/console/privacy{path(asked['erasure_id'])}")


@router.get("/console/privacy/{erasure_id}")
async def progress(request: Request, client: CurrentClient, viewer: CurrentViewer, erasure_id: str) -> Response:
    """Which partitions have confirmed an erasure."""
    del viewer
    found = await client.get(path("erasures", erasure_id))
    return render(request, "erasure.html", erasure=found)


async def _newest(client: ApiClient) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """The last erasures that the audit has: its entry, of what it is, and its progress."""
    asked = (await client.get("/audit", action="erasure.ask", limit=_NEWEST))["items"]
    progresses = await asyncio.gather(*(client.optional(path("erasures", entry["target"])) for entry in asked))
    return [
        (entry, str((entry["after"] or {}).get("subject")), progress)
        for entry, progress in zip(asked, progresses, strict=True)
        if progress
    ]


def _form(request: Request, fields: dict[str, str], status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
    defaults: dict[str, Any] = {"affected": None, "differs": False, "errors": {}, "lines": [], "newest": []}
    return render(request, "privacy.html", status, fields=fields, subjects=SUBJECTS, **defaults | values)
