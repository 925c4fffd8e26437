"""The answers of the HTTP API, without a web framework.

Two fronts call it: ``api.server`` (aiohttp, in a cluster) and ``infra.aws.handlers`` (Lambda behind an API Gateway).
Each routes, authenticates, and provides two ports: how a request is published and where its newest status is.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from pydantic import BaseModel, ValidationError

from foldtune.errors import TRANSIENT_ERRORS, FoldtuneError, OutOfBoundsError
from foldtune.events import FineTuneRequested, FineTuneStatus, RequestId, now
from foldtune.excerpts import excerpt
from foldtune.knobs import ModelName
from foldtune.reasons import explain, reasons_of
from foldtune.request_ids import RESERVED, is_reserved

Publish = Callable[[FineTuneRequested], None]
# By request id and, where the caller names one, model.
NewestStatus = Callable[[str, str | None], FineTuneStatus | None]

# The coordinator rejects larger events.
MAX_BODY_BYTES = 256 * 1024
# On every answer, beside the content type.
HEADERS = {"cache-control": "no-store"}
# The fields that a caller may set; requested_at, requested_by and origin are set here.
_BODY_FIELDS = frozenset({"request_id", "model", "base_model", "data", "dataset", "training", "weights", "seed"})
_MAX_LISTED_FIELDS = 10

_log = structlog.get_logger(__name__)


class BodyError(FoldtuneError):
    """body:"""


class _RequestName(BaseModel):
    request_id: RequestId
    model: ModelName | None


@dataclass(frozen=True)
class Answer:
    """A status code and the JSON object of the body."""

    status: HTTPStatus
    content: dict[str, object]


def refusal(status: HTTPStatus, *errors: str) -> Answer:
    """An answer that says what is wrong."""
    return Answer(status, {"errors": list(errors)})


BODY_TOO_LARGE = refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: at most {MAX_BODY_BYTES} bytes")


def submit_request(body: bytes, content_type: str, caller: str, publish: Publish) -> Answer:
    """``POST /requests``: publish the request; a body without a ``request_id`` gets a generated one.

    A browser sends other content types to any site without asking that site first.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        reason = f"content-type: should be application/json, got {excerpt(content_type, 100)!r}"
        return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)
    if len(body) > MAX_BODY_BYTES:
        return BODY_TOO_LARGE
    try:
        request = parse_request(body, caller)
    except (ValidationError, BodyError) as error:
        return refusal(HTTPStatus.BAD_REQUEST, *explain(error))
    try:
        publish(request)
    except OutOfBoundsError as error:
        return refusal(HTTPStatus.BAD_REQUEST, str(error))
    except TRANSIENT_ERRORS as error:
        _log.warning("request not published", request_id=request.request_id, error=str(error))
        # Perhaps only the acknowledgement was lost. Sent again under the same id, the request is accepted once.
        reason = "not available at the moment; retry with this request_id"
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, {"errors": [reason], "request_id": request.request_id})
    return Answer(HTTPStatus.ACCEPTED, {"request_id": request.request_id, "model": request.model})


def request_status(request_id: str, model: str | None, newest_status: NewestStatus) -> Answer:
    """``GET /requests/{id}?model=…``: the newest status, as it is on ``fine-tune-status``.

    Without a model that of the request that was told of last, where several models use the id.
    """
    try:
        _RequestName.model_validate({"request_id": request_id, "model": model})
    except ValidationError as error:
        return refusal(HTTPStatus.BAD_REQUEST, *reasons_of(error))
    try:
        status = newest_status(request_id, model)
    except TRANSIENT_ERRORS as error:
        _log.warning("status not available", request_id=request_id, error=str(error))
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "not available at the moment; retry later")
    if status is None:
        of = f" of model {model!r}" if model else ""
        return refusal(HTTPStatus.NOT_FOUND, f"request {request_id!r}{of} not found (yet)")
    return Answer(HTTPStatus.OK, status.model_dump(mode="json", exclude_none=True))


def parse_request(body: bytes, caller: str) -> FineTuneRequested:
    """The request of a JSON body, in the name of ``caller`` (cut to 256 characters).

    Raises:
        BodyError: not a JSON object, or one with fields or an id that a caller may not set.
        pydantic.ValidationError: a field is invalid or missing.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BodyError("should be JSON") from error
    if not isinstance(fields, dict):
        raise BodyError("should be a JSON object")
    if unknown := sorted(set(fields) - _BODY_FIELDS):
        raise BodyError(f"unknown fields: {', '.join(name[:100] for name in unknown[:_MAX_LISTED_FIELDS])}")
    if isinstance(request_id := fields.get("request_id"), str) and is_reserved(request_id):
        raise BodyError(RESERVED)
    generated = {"request_id": f"api-{now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"}
    # A header may hold bytes that are not UTF-8, which Python keeps as surrogates and JSON does not know.
    name = caller[:256].encode(errors="replace").decode()
    origin = {"requested_at": now().isoformat(), "requested_by": name, "origin": "api"}
    return FineTuneRequested.model_validate_json(json.dumps(generated | fields | origin))
