"""The HTTP API inside a cluster, on aiohttp.

It checks no token: it belongs behind a proxy that authenticates users and names them in ``X-Forwarded-User``. On AWS
the API Gateway checks tokens (``serverless.yml``).
"""

import asyncio
import ipaddress
import re
import threading
from collections.abc import Collection, Iterable
from functools import partial
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import ValidationError

from api.routes import (
    BODY_TOO_LARGE,
    HEADERS,
    MAX_BODY_BYTES,
    Answer,
    Publish,
    refusal,
    request_status,
    submit_request,
)
from foldtune.client.client import FoldtuneClient
from foldtune.events import FineTuneStatus
from foldtune.excerpts import excerpt
from foldtune.reasons import explain
from foldtune.settings import Settings
from foldtune.shutdown import exit_after
from foldtune.status_order import StatusRecord, merge_status, select_status
from foldtune.topic_reader import read
from foldtune.topics import Topic

_log = structlog.get_logger(__name__)
# Name or address, and port.
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]+)(?::[0-9]*)?")
# Requests in flight get this long to be answered; a cluster kills a process 30 s after SIGTERM.
_DRAIN_SECONDS, _SHUTDOWN_SECONDS = 5.0, 15.0


class StatusCache:
    """The newest status of every request, as far as ``fine-tune-status`` has been read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._newest: dict[str, tuple[StatusRecord, ...]] = {}
        self._thread = threading.Thread(target=self._read, kwargs={"follow": True}, name="statuses", daemon=True)

    def start(self) -> None:
        """Read the topic to its present end, then follow it in the background.

        Raises:
            NoBrokerError: no broker answers.
            TopicMissingError: no worker has created the topics yet.
        """
        self._read(follow=False)
        self._thread.start()

    @property
    def following(self) -> bool:
        """Whether new statuses are still read."""
        return self._thread.is_alive()

    def newest(self, request_id: str, model: str | None = None) -> FineTuneStatus | None:
        """The newest status of a request; ``None`` where there is none (yet)."""
        return select_status(self._newest.get(request_id, ()), model)

    def add(self, record: StatusRecord) -> None:
        """Merge one record of the topic, in any order and however often."""
        request_id = record.status.request_id
        self._newest[request_id] = merge_status(self._newest.get(request_id, ()), record)

    def _read(self, *, follow: bool) -> None:
        for record in read(self._settings.kafka, Topic.FINE_TUNE_STATUS, follow=follow):
            if record.value is None:
                continue
            try:
                status = FineTuneStatus.model_validate_json(record.value)
            except ValidationError as error:
                source = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
                _log.warning("unreadable status", **source, error="; ".join(explain(error)))
                continue
            self.add(StatusRecord(partition=record.partition, offset=record.offset, status=status))


class ApiServer:
    """``POST /requests``, ``GET /requests/{id}`` and ``GET /health``."""

    def __init__(self, publish: Publish, statuses: StatusCache, hosts: Iterable[str] = ()) -> None:
        """``hosts`` are the names by which the API may be called, beside ``localhost`` and any IP address."""
        self._publish = publish
        self._statuses = statuses
        self._hosts = frozenset({"localhost", *(host.lower() for host in hosts)})

    def application(self) -> web.Application:
        """The routes, for any aiohttp server."""
        application = web.Application(
            client_max_size=MAX_BODY_BYTES, middlewares=[_json_errors, _known_hosts(self._hosts)]
        )
        application.router.add_post("/requests", self._post_request)
        application.router.add_get("/requests/{id}", self._get_request)
        application.router.add_get("/health", self._health)
        return application

    async def _post_request(self, call: web.Request) -> web.Response:
        try:
            body = await call.read()
        except (web.RequestPayloadError, ConnectionResetError):
            return _response(refusal(HTTPStatus.BAD_REQUEST, "body: it ends early, or is not of its Content-Encoding"))
        content_type, caller = call.headers.get("Content-Type", ""), call.headers.get("X-Forwarded-User") or "unknown"
        # In a thread, since it waits for the brokers.
        return _response(await asyncio.to_thread(submit_request, body, content_type, caller, self._publish))

    async def _get_request(self, call: web.Request) -> web.Response:
        return _response(request_status(call.match_info["id"], call.query.get("model"), self._statuses.newest))

    async def _health(self, _: web.Request) -> web.Response:
        if self._statuses.following:
            return web.Response(text="ok\n")
        return web.Response(text="fine-tune-status is no longer read\n", status=HTTPStatus.SERVICE_UNAVAILABLE)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve the API until SIGINT or SIGTERM.

    Raises:
        NoBrokerError: no broker answers.
        TopicMissingError: no worker has created the topics yet.
    """
    with FoldtuneClient(settings) as client:
        statuses = StatusCache(settings)
        statuses.start()
        _log.info("http server listening", host=host, port=port)
        application = ApiServer(client.request_fine_tune, statuses, (host, *settings.api.hosts)).application()
        application.on_shutdown.append(_bound_shutdown)
        web.run_app(application, host=host, port=port, access_log=None, print=None, shutdown_timeout=_DRAIN_SECONDS)


async def _bound_shutdown(_: web.Application) -> None:
    """Without brokers the client tries for longer, and the interpreter waits for the threads of requests."""
    reason = f"not stopped within {_SHUTDOWN_SECONDS:.0f} s"
    exit_after(_SHUTDOWN_SECONDS, 0, partial(_log.warning, "shutdown forced", reason=reason))


def _known_hosts(names: Collection[str]) -> Middleware:
    """Refuse calls under other names: whoever owns a name can have it mean this address to somebody's browser.

    Nobody owns an address, by which health checks call.
    """

    @web.middleware
    async def refuse_others(request: web.Request, handler: Handler) -> web.StreamResponse:
        for header in request.headers.getall("Host", ()):
            parts = _HOST.fullmatch(header.lower())
            if parts is None or not (parts[1] in names or _is_address(parts[1].strip("[]"))):
                reason = f"host: {excerpt(header, 100)!r} is none of this API's names (api.hosts)"
                return _response(refusal(HTTPStatus.MISDIRECTED_REQUEST, reason))
        return await handler(request)

    return refuse_others


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """aiohttp's own refusals in the API's JSON."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _response(BODY_TOO_LARGE)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
        answer = refusal(HTTPStatus(error.status), f"no such route: {request.method} {request.path}")
        return _response(answer, {name: value for name, value in error.headers.items() if name == "Allow"})


def _response(answer: Answer, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(answer.content, status=answer.status, headers=HEADERS | (headers or {}))
