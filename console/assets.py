"""Styles and scripts: the console's own, and two libraries of npm (``frontend/package.json``)."""

import hashlib
from functools import cache
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

_FOLDER = Path(__file__).parent
_LIBRARIES = _FOLDER / "frontend" / "node_modules"
# By the name in their address. No other file is served.
FILES = {
    "console.css": _FOLDER / "static" / "console.css",
    "console.js": _FOLDER / "static" / "console.js",
    "icon.svg": _FOLDER / "static" / "icon.svg",
    "htmx.js": _LIBRARIES / "htmx.org" / "dist" / "htmx.min.js",
    "uplot.js": _LIBRARIES / "uplot" / "dist" / "uPlot.iife.min.js",
    "uplot.css": _LIBRARIES / "uplot" / "dist" / "uPlot.min.css",
}
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

router = APIRouter()


@cache
def address(name: str) -> str:
    """Where a file is: its content is in the address, so that browsers keep it for good."""
    digest = hashlib.sha256(FILES[name].read_bytes()).hexdigest()[:12]
    return f"/console/assets/{digest}/{name}"


@router.get("/console/assets/{digest}/{name}")
async def asset(digest: str, name: str) -> Response:
    """A file."""
    if name not in FILES:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    current = address(name).split("/")[3] == digest
    keep = "public, max-age=31536000, immutable" if current else "no-store"
    path = FILES[name]
    return FileResponse(path, headers={"cache-control": keep}, media_type=_TYPES[path.suffix])
