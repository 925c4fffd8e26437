"""The forms of answers, and those of bodies for the OpenAPI document."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from api.submission import RequestBody
from foldtune.events import AuditEntry, FineTuneStatus

_REFERENCE = "#/components/schemas/{model}"


class InvalidField(BaseModel):
    """What is wrong with a field or parameter."""

    name: str
    reason: str = Field(description="With the bound")


class Problem(BaseModel):
    """What is wrong with a call (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[str] = Field(description="One line for each thing that is wrong")
    fields: list[InvalidField] = []
    request_id: str | None = Field(None, description="Of a request that was perhaps published: send it again under it")


class Accepted(BaseModel):
    """A request that was published."""

    request_id: str
    model: str


class RequestList(BaseModel):
    """The newest statuses of requests, the newest first."""

    items: list[FineTuneStatus]
    next: str | None = Field(description="The `cursor` of the next page; a page may be short, or empty, and have one")


class AuditList(BaseModel):
    """Entries, the newest first."""

    items: list[AuditEntry]
    next: str | None = Field(description="The `cursor` of the next page")


BODIES: Mapping[str, type[BaseModel]] = {"RequestBody": RequestBody}


def component_schemas() -> dict[str, Any]:
    """The schemas of all bodies and their parts."""
    _, schema = models_json_schema([(kind, "validation") for kind in BODIES.values()], ref_template=_REFERENCE)
    return dict(schema["$defs"])


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads its body itself."""
    schema = {"$ref": _REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
