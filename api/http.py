"""What holds for every call, whatever the route: its name, time limit, log line, metrics and security headers."""

import asyncio
import ipaddress
import json
import re
import time
import uuid
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

import structlog
from prometheus_client import Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import CONTENT_TYPE, SECURITY_HEADERS, ProblemError, unavailable
from foldtune.excerpts import excerpt

_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REQUEST_SECONDS = Histogram(
    "foldtune_api_request_seconds",
    "Time to the first byte of an answer, by route.",
    ["method", "route", "status"],
    buckets=_BUCKETS,
)

# From the first byte of a call to the first of its answer.
TIME_LIMIT_SECONDS = 28.0
_TRACE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Name or address, and port.
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]+)(?::[0-9]*)?")

_DEFECT = ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "a defect; the log has it under this x-request-id")

_log = structlog.get_logger(__name__)


class CallMiddleware:
    """Names a call, bounds its time, and says afterwards how it went."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        trace_id = given if _TRACE_ID.fullmatch(given) else uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(trace_id=trace_id)
        started = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if not limit.expired():
                    # A body that is streamed takes as long as its caller listens.
                    limit.reschedule(None)
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers["x-request-id"] = trace_id
                _report(scope, status, time.perf_counter() - started)
            await send(message)

        try:
            async with asyncio.timeout(TIME_LIMIT_SECONDS) as limit:
                try:
                    await self._app(scope, receive, answer)
                except Exception:
                    _log.exception("unhandled error")
                    if status:
                        raise
                    await send_problem(_DEFECT, answer)
        except TimeoutError:
            if status:
                raise
            await send_problem(unavailable(), answer)


def _report(scope: Scope, status: int, seconds: float) -> None:
    # Only what a route has taken: a path that nobody serves may be any text.
    path = getattr(scope.get("route"), "path_format", "none")
    method = scope["method"] if scope["method"] in {"GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"} else "other"
    REQUEST_SECONDS.labels(method, path, status).observe(seconds)
    fields = {"method": method, "route": path, "status": status, "seconds": round(seconds, 4)}
    parameters = {name: excerpt(str(value), 100) for name, value in scope.get("path_params", {}).items()}
    # Probes come every few seconds.
    level = _log.debug if path in {"/health", "/ready"} else _log.info
    level("call answered", **fields, **parameters)


class BrowserMiddleware:
    """Refuse what a page of somebody else has a user's browser do.

    That is a call under another name, since whoever owns a name can have it mean this address (nobody owns an address,
    by which health checks call), and a change from another origin, which needs no permission if it has no body.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope["method"], Headers(scope=scope))):
            await send_problem(problem, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, method: str, headers: Headers) -> ProblemError | None:
        for header in headers.getlist("host"):
            parts = _HOST.fullmatch(header.lower())
            if parts is None or not (parts[1] in self._names or _is_address(parts[1].strip("[]"))):
                reason = f"host: {excerpt(header, 100)!r} is none of this API's names (api.hosts)"
                return ProblemError(HTTPStatus.MISDIRECTED_REQUEST, reason)
        origin = headers.get("origin")
        own = origin is None or origin in self._origins or origin.partition("://")[2] == headers.get("host")
        if method not in {"GET", "HEAD", "OPTIONS"} and not own:
            reason = f"origin: {excerpt(str(origin), 100)!r} is none of api.cors_origins"
            return ProblemError(HTTPStatus.FORBIDDEN, reason)
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def send_problem(problem: ProblemError, send: Send) -> None:
    """Answer with a problem, outside of the routes."""
    body = json.dumps(problem.document()).encode()
    headers = {"content-type": CONTENT_TYPE, "content-length": str(len(body)), **problem.headers}
    encoded: list[tuple[bytes, bytes]] = [(name.encode(), value.encode()) for name, value in headers.items()]
    start: dict[str, Any] = {"type": "http.response.start", "status": problem.status.value, "headers": encoded}
    await send(start)
    await send({"type": "http.response.body", "body": body})
