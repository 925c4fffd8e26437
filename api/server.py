"""The HTTP API outside of AWS: takes requests for a fine-tuning and tells how they stand.

It asks for no token: it is for the inside of a cluster, behind a proxy that knows its users and names them in
``X-Forwarded-User``. On AWS the API Gateway checks tokens (``serverless.yml``).
"""

import asyncio
import threading
from datetime import datetime
from http import HTTPStatus

import structlog
from aiohttp import web
from pydantic import ValidationError

from api.errors import BodyError, UnknownFieldsError
from api.requests import MAX_BODY_BYTES, request_of
from foldtune.client.client import FoldtuneClient
from foldtune.errors import TRANSIENT_ERRORS, OutOfBoundsError
from foldtune.events import FineTuneStatus
from foldtune.reasons import reasons_of
from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import Topic

_log = structlog.get_logger(__name__)


class Statuses:
    """The newest status of every request, as far as ``fine-tune-status`` has been read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._newest: dict[str, FineTuneStatus] = {}
        self._thread = threading.Thread(target=self._follow, name="statuses", daemon=True)

    def start(self, client: FoldtuneClient) -> None:
        """Read what there is, then go on in the background."""
        self._newest |= client.requests()
        self._thread.start()

    @property
    def followed(self) -> bool:
        """Whether new statuses are still read."""
        return self._thread.is_alive()

    def newest(self, request_id: str) -> FineTuneStatus | None:
        """How a request stands; ``None`` where nothing is known of it (yet)."""
        return self._newest.get(request_id)

    def take(self, status: FineTuneStatus) -> None:
        """Take in one event of the topic: the past, which is read again after a start, takes nothing back."""
        known = self._newest.get(status.request_id)
        if known is None or _rank(known) <= _rank(status):
            self._newest[status.request_id] = status

    def _follow(self) -> None:
        for record in read(self._settings.kafka, Topic.FINE_TUNE_STATUS, follow=True):
            try:
                status = FineTuneStatus.model_validate_json(record.value or b"")
            except ValidationError as error:
                _log.warning("unreadable status", offset=record.offset, errors=error.error_count())
                continue
            self.take(status)


class Api:
    """``POST /requests``, ``GET /requests/{id}`` and ``GET /health``."""

    def __init__(self, client: FoldtuneClient, statuses: Statuses) -> None:
        self._client = client
        self._statuses = statuses

    def application(self) -> web.Application:
        """The routes, for whatever serves them."""
        site = web.Application(client_max_size=MAX_BODY_BYTES)
        site.router.add_post("/requests", self._ask)
        site.router.add_get("/requests/{id}", self._tell)
        site.router.add_get("/health", self._health)
        return site

    async def _ask(self, call: web.Request) -> web.Response:
        try:
            request = request_of(await call.read(), call.headers.get("X-Forwarded-User") or "unknown")
        except ValidationError as error:
            return _answer(HTTPStatus.BAD_REQUEST, {"errors": list(reasons_of(error))})
        except (BodyError, UnknownFieldsError) as error:
            return _answer(HTTPStatus.BAD_REQUEST, {"errors": [str(error)]})
        try:
            await asyncio.to_thread(self._client.request_fine_tune, request)
        except OutOfBoundsError as error:
            return _answer(HTTPStatus.BAD_REQUEST, {"errors": [str(error)]})
        except TRANSIENT_ERRORS as error:
            _log.warning("request not published", error=str(error))
            # It may have been taken all the same; sent again under its name, it is not taken twice.
            reason = "not available at the moment; the same request may be sent again, with this request_id"
            content: dict[str, object] = {"errors": [reason], "request_id": request.request_id}
            return _answer(HTTPStatus.SERVICE_UNAVAILABLE, content)
        return _answer(HTTPStatus.ACCEPTED, {"request_id": request.request_id, "model": request.model})

    async def _tell(self, call: web.Request) -> web.Response:
        status = self._statuses.newest(call.match_info["id"])
        if status is None:
            return _answer(HTTPStatus.NOT_FOUND, {"errors": ["no request of this id is known (yet)"]})
        return _answer(HTTPStatus.OK, status.model_dump(mode="json", exclude_none=True))

    async def _health(self, _: web.Request) -> web.Response:
        if self._statuses.followed:
            return web.Response(text="ok\n")
        return web.Response(text="statuses are not read any more\n", status=HTTPStatus.SERVICE_UNAVAILABLE)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve the API until SIGINT or SIGTERM.

    Raises:
        NoBrokerError: no broker answers.
        TopicMissingError: no worker has been there yet to create the topics.
    """
    with FoldtuneClient(settings) as client:
        statuses = Statuses(settings)
        statuses.start(client)
        _log.info("the API is served", host=host, port=port)
        web.run_app(Api(client, statuses).application(), host=host, port=port, access_log=None, print=None)


def _rank(status: FineTuneStatus) -> tuple[bool, datetime]:
    # Clocks differ: an end is the last word, whenever it was said.
    return status.state.terminal, status.at


def _answer(status: HTTPStatus, content: dict[str, object]) -> web.Response:
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})
