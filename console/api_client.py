"""The console's way to the HTTP API: in this process, as whoever is signed in."""

import asyncio
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote

import httpx
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

# What a page waits for all of its answers: longer than routes wait for others, and less than a call may take, so that
# the page itself says so.
_LIMIT_SECONDS = 27.0


class ApiError(Exception):
    """The API's refusal, with its problem document."""

    def __init__(self, status: HTTPStatus, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail", status.phrase))
        self.status = status
        self.lines: list[str] = problem.get("errors") or [status.phrase]
        self.fields: dict[str, str] = {field["name"]: field["reason"] for field in problem.get("fields", ())}


def path(*parts: str) -> str:
    """A path of the API; each part is quoted, whatever is in it."""
    return "".join(f"/{_quoted(part)}" for part in parts)


def _quoted(part: str) -> str:
    # Written out, these two would mean other folders than their own.
    return part.replace(".", "%2E") if part in {".", ".."} else quote(part, safe="")


class ApiClient:
    """Calls the API with a session, or without one where there is no sign-in."""

    def __init__(self, api: ASGIApp, session: str | None, forwarded_user: str | None = None) -> None:
        headers = {"authorization": f"Bearer {session}"} if session else {}
        if forwarded_user:
            headers["x-forwarded-user"] = forwarded_user
        # The page's name, so that its calls are found in the log.
        if trace_id := structlog.contextvars.get_contextvars().get("trace_id"):
            headers["x-request-id"] = trace_id
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=api, raise_app_exceptions=False),
            base_url="http://localhost",
            # In the bytes that came.
            headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        )
        self._ends = time.monotonic() + _LIMIT_SECONDS

    async def get(self, address: str, **query: Any) -> Any:
        """The JSON that a route answers; raises ``ApiError``."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._content(await self._call("GET", address, params=given))

    async def optional(self, address: str, **query: Any) -> Any:
        """The JSON that a route answers; none where it refuses, if a page says more without it than not at all."""
        try:
            return await self.get(address, **query)
        except ApiError as error:
            if error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}:
                raise
            return None

    async def get_with_etag(self, address: str) -> tuple[Any, str | None]:
        """The JSON that a route answers, and the tag by which it can be replaced; raises ``ApiError``."""
        answer = await self._call("GET", address)
        return self._content(answer), answer.headers.get("etag")

    async def put(self, address: str, body: Any, etag: str | None) -> Any:
        """Replace what has this tag, or nothing; raises ``ApiError``."""
        # A form may have sent any text.
        headers = {} if etag is None else {"if-match": etag.encode(errors="replace")}
        return self._content(await self._call("PUT", address, json=body, headers=headers))

    async def post(self, address: str, body: Any = None) -> Any:
        """What a route answers to a change; raises ``ApiError``."""
        return self._content(await self._call("POST", address, json=body))

    async def _call(self, method: str, address: str, **content: Any) -> httpx.Response:
        try:
            async with asyncio.timeout(self._ends - time.monotonic()):
                return await self._http.request(method, address, **content)
        except TimeoutError as error:
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, {}) from error
        except httpx.InvalidURL as error:
            # Quoted, a text may be three times as long as in the browser's address.
            raise ApiError(HTTPStatus.REQUEST_URI_TOO_LONG, {}) from error

    def _content(self, answer: httpx.Response) -> Any:
        try:
            content = answer.json() if answer.content else None
        except (ValueError, RecursionError) as error:
            # Files of a version come as they are.
            status = HTTPStatus.BAD_GATEWAY if answer.is_success else HTTPStatus(answer.status_code)
            raise ApiError(status, {"errors": [answer.text[:500]]}) from error
        if not answer.is_success:
            raise ApiError(HTTPStatus(answer.status_code), content if isinstance(content, dict) else {})
        return content


class Forwarded(Response):
    """The API's own answer, as it comes: for streams."""

    def __init__(self, api: ASGIApp, request: Request, address: str, session: str | None) -> None:
        super().__init__()
        self._api = api
        headers = [(name, value) for name, value in request.headers.raw if name not in {b"cookie", b"authorization"}]
        if session:
            headers.append((b"authorization", f"Bearer {session}".encode()))
        self._scope = {
            "type": "http",
            "asgi": request.scope.get("asgi", {}),
            "http_version": request.scope["http_version"],
            "method": "GET",
            "scheme": request.scope["scheme"],
            "path": unquote(address),
            "raw_path": address.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": request.scope.get("client"),
            "server": request.scope.get("server"),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the API answer."""
        del scope
        await self._api(self._scope, receive, send)
