"""Reads a call's body within its bound."""

from http import HTTPStatus
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from api.problems import ProblemError
from api.submission import MAX_BODY_BYTES, body_too_large, parse_body

B = TypeVar("B", bound=BaseModel)


async def read_body(request: Request, kind: type[B]) -> B:
    """The body as JSON; raises ``ProblemError``."""
    if encoding := request.headers.get("content-encoding"):
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-encoding: none is accepted, got {encoding[:100]!r}"
        )
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise body_too_large()
    except ClientDisconnect as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "body: it ends early") from error
    return parse_body(kind, bytes(body), request.headers.get("content-type", ""))
