"""The body of ``POST /requests``, and the event that it becomes."""

import json
import secrets
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from api.access import Access, Caller
from api.audit import audit_entry
from api.problems import ProblemError, invalid
from foldtune.events import (
    AuditEntry,
    Count,
    FineTuneCancelled,
    FineTuneRequested,
    ModelReference,
    RequestId,
    State,
    now,
)
from foldtune.excerpts import excerpt
from foldtune.knobs import DataSelection, DatasetKnobs, Knobs, ModelName, TrainingKnobs, WeightKnobs
from foldtune.request_ids import RESERVED, is_reserved
from foldtune.topics import request_key

# The coordinator rejects larger events.
MAX_BODY_BYTES = 256 * 1024
_MAX_LISTED_FIELDS = 10

B = TypeVar("B", bound=BaseModel)


class RequestName(BaseModel):
    """Which request is meant."""

    request_id: RequestId
    model: ModelName | None = None


class RequestBody(Knobs):
    """A request, as a caller may write it."""

    request_id: RequestId | None = Field(None, description="Sent again, it is the same request. Default: a new one")
    model: ModelName
    base_model: ModelReference | None = None
    data: DataSelection = DataSelection()
    dataset: DatasetKnobs = DatasetKnobs()
    training: TrainingKnobs = TrainingKnobs()
    weights: WeightKnobs = WeightKnobs()
    seed: Count = 0


def parse_body(kind: type[B], body: bytes, content_type: str) -> B:
    """A body as JSON.

    A browser sends other content types to any site without asking that site first.

    Raises:
        ProblemError: not JSON, too large, or invalid; each field is named with its bound.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        reason = f"content-type: should be application/json, got {excerpt(content_type, 100)!r}"
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)
    if len(body) > MAX_BODY_BYTES:
        raise body_too_large()
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "body: should be JSON") from error
    if not isinstance(fields, dict):
        raise ProblemError(HTTPStatus.BAD_REQUEST, "body: should be a JSON object")
    if unknown := sorted(set(fields) - set(kind.model_fields)):
        names = ", ".join(excerpt(name, 100) for name in unknown[:_MAX_LISTED_FIELDS])
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"body: unknown fields: {names}")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error


def body_too_large() -> ProblemError:
    """413."""
    return ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: at most {MAX_BODY_BYTES} bytes")


def request_of(body: RequestBody, access: Access) -> FineTuneRequested:
    """The request in the caller's name.

    Raises:
        ProblemError: the caller's roles do not cover its model and folders, or the id is reserved.
    """
    access.require(model=body.model, folders=body.data.folders)
    if body.request_id is not None and is_reserved(body.request_id):
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"body: {RESERVED}", fields=(("request_id", RESERVED),))
    fields = {name: getattr(body, name) for name in body.model_fields_set}
    return FineTuneRequested.model_validate(
        {
            **fields,
            "request_id": body.request_id or new_request_id(),
            "requested_at": now(),
            "requested_by": access.caller.name,
            "origin": "api",
        }
    )


def differences(request: FineTuneRequested, first: bytes) -> list[str]:
    """What a request asks for otherwise than the first one under its id, by the fields of ``RequestBody``."""
    fields = [name for name in RequestBody.model_fields if name not in {"request_id", "model"}]
    try:
        asked = FineTuneRequested.model_validate_json(first)
    except ValidationError:
        # Not valid, as this one is: it was rejected.
        return fields
    return [name for name in fields if getattr(asked, name) != getattr(request, name)]


def asked_otherwise(request: FineTuneRequested, different: list[str] | None = None) -> ProblemError:
    """409: the first request under the id has asked for something else, in the ``different`` fields if known."""
    name = f"request {request.request_id!r} of model {request.model!r}"
    values = f"other values of {', '.join(different)}" if different else "other values"
    reason = f"{name} was made with {values}; another request needs another id"
    return ProblemError(HTTPStatus.CONFLICT, reason, fields=(("request_id", reason),))


def creation_entry(caller: Caller, request: FineTuneRequested, retry_of: str | None = None) -> AuditEntry:
    """The entry of ``audit`` for a request."""
    return audit_entry(
        caller,
        "request.create" if retry_of is None else "request.retry",
        request_key(request.model, request.request_id),
        model=request.model,
        folders=request.data.folders,
        before=None if retry_of is None else {"retry_of": retry_of},
        after=request.model_dump(mode="json", exclude_none=True, exclude={"type", "schema_version"}),
    )


def cancellation(caller: Caller, model: str, request_id: str, state: State) -> tuple[AuditEntry, FineTuneCancelled]:
    """The entry of ``audit`` and the event that cancel a request; raises ``ProblemError`` (409) if it has ended."""
    if state.terminal:
        raise ProblemError(HTTPStatus.CONFLICT, f"request {request_id!r} of model {model!r} has ended: {state}")
    event = FineTuneCancelled(request_id=request_id, model=model, requested_at=now(), requested_by=caller.name)
    target = request_key(model, request_id)
    return audit_entry(caller, "request.cancel", target, model=model, before={"state": state}), event


def perhaps_published(request_id: str) -> ProblemError:
    """503: perhaps only the acknowledgement was lost. Sent again under the same id, the request is accepted once."""
    reason = "not available at the moment; retry with this request_id"
    return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, reason, headers={"retry-after": "5"}, request_id=request_id)


def request_not_found(request_id: str, model: str | None) -> ProblemError:
    """404."""
    of = f" of model {model!r}" if model else ""
    return ProblemError(HTTPStatus.NOT_FOUND, f"request {request_id!r}{of} not found (yet)")


def new_request_id() -> str:
    """An id that no other request has."""
    return f"api-{now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
