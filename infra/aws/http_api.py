"""The routes of the HTTP API that need no view of the topics: what API Gateway and Lambda answer.

Statuses are objects that the function ``launch`` keeps, and models have their manifests. All other routes are those of
``foldtune api`` in a cluster, which reads the topics; here they are answered with 501, and say so. There are no events
to follow: ``GET`` of a request with ``wait`` and ``If-None-Match`` waits for a change.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

import structlog
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from api.access import RULES, Access, authorize, caller_of
from api.artifacts import LINK_SECONDS, VersionFiles
from api.cursors import NamePlace, decode_cursor, encode_cursor
from api.etags import is_named
from api.problems import CONTENT_TYPE, ProblemError, invalid, unavailable
from api.submission import (
    RequestBody,
    RequestName,
    asked_otherwise,
    cancellation,
    creation_entry,
    parse_body,
    perhaps_published,
    request_not_found,
    request_of,
)
from foldtune.errors import TRANSIENT_ERRORS
from foldtune.events import AuditEntry, Event, FineTuneStatus
from foldtune.kafka import Publisher
from foldtune.knobs import ModelName
from foldtune.object_keys import MANIFEST, model_prefix
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from foldtune.topics import Topic
from infra.aws.lambda_events import HttpRequest
from infra.aws.status_store import StatusStore

_log = structlog.get_logger(__name__)

# API Gateway waits for 30 s, the function for 28.
MAX_WAIT_SECONDS = 20
POLL_SECONDS = 1.0
# A function's whole answer has at most 6 MB, as JSON.
_MAX_ANSWER = 5_000_000

GetPublisher = Callable[[], Publisher]


class Answer(NamedTuple):
    """An answer's status, body and headers."""

    status: HTTPStatus
    body: bytes
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"


class _Wait(BaseModel):
    wait: Annotated[int, Field(ge=0, le=MAX_WAIT_SECONDS)] = 0


class _Page(BaseModel):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, StringConstraints(max_length=1000)] | None = None


class _VersionName(BaseModel):
    model: ModelName
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")] = "0"


class HttpApi:
    """Answers calls. ``publishing`` gives a publisher for one call, which connects on its first use."""

    def __init__(
        self, settings: Settings, store: ObjectStore, publishing: Callable[[], AbstractContextManager[GetPublisher]]
    ) -> None:
        self._settings, self._store, self._publishing = settings, store, publishing
        version = "/models/{model}/versions/{version}"
        self._routes: dict[str, Callable[[HttpRequest, Access], Answer]] = {
            "POST /requests": self._create_request,
            "GET /requests/{id}": self._get_request,
            "GET /models/{model}/requests/{id}": self._get_request,
            "POST /models/{model}/requests/{id}/cancel": self._cancel_request,
            "GET /models/{model}/versions": self._list_versions,
            f"GET {version}": self._get_version,
            f"GET {version}/card": self._get_card,
            f"GET {version}/metrics": self._get_metrics,
            f"GET {version}/files": self._list_files,
            f"GET {version}/files/{{path}}": self._link_file,
        }

    @property
    def routes(self) -> frozenset[str]:
        """Those that are answered, as ``RULES`` has them."""
        return frozenset(self._routes)

    def answer(self, call: HttpRequest) -> Answer:
        """Answer a call, problems and defects included."""
        try:
            return _bounded(self._answer(call))
        except ProblemError as problem:
            return _problem(problem)
        except Exception:
            _log.exception("unhandled error", route=call.route)
            return _problem(ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "a defect; the function's log has it"))

    def _answer(self, call: HttpRequest) -> Answer:
        if call.claims is None:
            raise ProblemError(HTTPStatus.UNAUTHORIZED, "authorization: a bearer token is needed")
        caller = caller_of(call.claims, self._settings.api)
        structlog.contextvars.bind_contextvars(caller=caller.name)
        if call.route not in self._routes:
            raise _elsewhere(call)
        try:
            return self._routes[call.route](call, authorize(call.route, caller, call.parameters.get("model")))
        except TRANSIENT_ERRORS as error:
            _log.warning("call not answered", route=call.route, error=str(error))
            raise unavailable() from error

    # ── Requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _create_request(self, call: HttpRequest, access: Access) -> Answer:
        try:
            content = call.content
        except ValueError as error:
            raise ProblemError(HTTPStatus.BAD_REQUEST, "body: should be text, or bytes in base64") from error
        body = parse_body(RequestBody, content, call.headers.get("content-type", ""))
        request = request_of(body, access)
        first = StatusStore(self._store).newest(request.request_id, request.model) if body.request_id else None
        if first is not None and first.asked_sha256 is not None:
            if first.asked_sha256 != request.digest:
                raise asked_otherwise(request)
            return _accepted(request.request_id, request.model)
        entry = creation_entry(access.caller, request)
        self._publish(entry, request, request.request_id, request.model)
        return _accepted(request.request_id, request.model)

    def _get_request(self, call: HttpRequest, access: Access) -> Answer:
        try:
            wait = _Wait.model_validate({"wait": call.query.get("wait", 0)}).wait
        except ValidationError as error:
            raise invalid(error) from error
        known = call.headers.get("if-none-match", "")
        deadline = time.monotonic() + wait
        while True:
            content = self._status(call, access).encode()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            if not is_named(tag, known):
                return Answer(HTTPStatus.OK, content, {"etag": tag})
            if (left := deadline - time.monotonic()) <= 0:
                return Answer(HTTPStatus.NOT_MODIFIED, b"", {"etag": tag})
            time.sleep(min(POLL_SECONDS, left))

    def _cancel_request(self, call: HttpRequest, access: Access) -> Answer:
        status = self._status(call, access)
        # Which folders it has named is not known here.
        access.require(model=status.model, folders=None)
        entry, event = cancellation(access.caller, status.model, status.request_id, status.state)
        self._publish(entry, event, status.request_id, status.model)
        return _accepted(status.request_id, status.model)

    def _status(self, call: HttpRequest, access: Access) -> FineTuneStatus:
        try:
            name = RequestName(
                request_id=call.parameters.get("id", ""), model=call.parameters.get("model") or call.query.get("model")
            )
        except ValidationError as error:
            raise invalid(error) from error
        status = StatusStore(self._store).newest(name.request_id, name.model)
        if status is None or not access.covers(model=status.model):
            raise request_not_found(name.request_id, name.model)
        return status

    def _publish(self, entry: AuditEntry, event: Event, request_id: str, model: str) -> None:
        try:
            with self._publishing() as publisher:
                publisher().publish(Topic.AUDIT, entry, key=entry.target)
                publisher().publish(Topic.FINE_TUNE_REQUESTS, event, key=model)
        except TRANSIENT_ERRORS as error:
            _log.warning("request not published", request_id=request_id, error=str(error))
            raise perhaps_published(request_id) from error

    # ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _list_versions(self, call: HttpRequest, _: Access) -> Answer:
        """Those that were published, the newest first."""
        model = _named(call).model
        try:
            page = _Page.model_validate(call.query)
        except ValidationError as error:
            raise invalid(error) from error
        place = decode_cursor(NamePlace, page.cursor)
        prefix = model_prefix(model, "")
        manifest = re.compile(rf"{re.escape(prefix)}([^/]+)/{re.escape(MANIFEST)}")
        found = filter(None, map(manifest.fullmatch, self._store.list(prefix)))
        versions = sorted((match[1] for match in found), reverse=True)
        if not versions:
            raise ProblemError(HTTPStatus.NOT_FOUND, f"model {model!r} has no versions (yet)")
        left = [version for version in versions if place is None or version < place.name]
        following = NamePlace(left[page.limit - 1]) if len(left) > page.limit else None
        items = [{"version": version} for version in left[: page.limit]]
        return _ok({"items": items, "next": encode_cursor(following)})

    def _get_version(self, call: HttpRequest, _: Access) -> Answer:
        return Answer(HTTPStatus.OK, self._files(call).ready.encode())

    def _get_card(self, call: HttpRequest, _: Access) -> Answer:
        return Answer(HTTPStatus.OK, self._files(call).read("README.md"), content_type="text/markdown; charset=utf-8")

    def _get_metrics(self, call: HttpRequest, _: Access) -> Answer:
        return Answer(HTTPStatus.OK, self._files(call).read("metrics.json"))

    def _list_files(self, call: HttpRequest, _: Access) -> Answer:
        return _ok({"items": [file.model_dump(mode="json") for file in self._files(call).files]})

    def _link_file(self, call: HttpRequest, _: Access) -> Answer:
        return _ok({"url": self._files(call).link(call.parameters.get("path", "")), "seconds": LINK_SECONDS})

    def _files(self, call: HttpRequest) -> VersionFiles:
        name = _named(call)
        return VersionFiles(self._store, name.model, name.version)


def _named(call: HttpRequest) -> _VersionName:
    try:
        return _VersionName.model_validate(call.parameters)
    except ValidationError as error:
        raise invalid(error) from error


def _problem(problem: ProblemError) -> Answer:
    return Answer(problem.status, json.dumps(problem.document()).encode(), problem.headers, CONTENT_TYPE)


def _bounded(answer: Answer) -> Answer:
    """The answer; raises ``ProblemError`` for one that a function cannot give."""
    if len(json.dumps(answer.body.decode(errors="replace"))) > _MAX_ANSWER:
        reason = f"its answer of {len(answer.body)} bytes is too large for a function: fetch the file by its link"
        raise ProblemError(HTTPStatus.CONFLICT, reason)
    return answer


def _ok(content: dict[str, Any]) -> Answer:
    return Answer(HTTPStatus.OK, json.dumps(content).encode())


def _accepted(request_id: str, model: str) -> Answer:
    return Answer(HTTPStatus.ACCEPTED, json.dumps({"request_id": request_id, "model": model}).encode())


def _elsewhere(call: HttpRequest) -> ProblemError:
    """The problem of a route that is not answered here."""
    for route in RULES:
        method, _, path = route.partition(" ")
        pattern = re.sub(r"\\{(\w+)\\}", lambda name: ".+" if name[1] == "path" else "[^/]+", re.escape(path))
        if call.method == method and re.fullmatch(pattern, call.path):
            reason = f"{route} needs a view of the topics: it is to be had from `foldtune api` in a cluster only"
            return ProblemError(HTTPStatus.NOT_IMPLEMENTED, reason)
    return ProblemError(HTTPStatus.NOT_FOUND, f"no such route: {call.method} {call.path[:200]}")
