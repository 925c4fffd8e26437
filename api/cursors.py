"""Cursors of pages: a place in a list, as text that callers need not understand."""

import base64
import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar, get_type_hints

from api.problems import ProblemError

K = TypeVar("K", bound="tuple[Any, ...]")
_REASON = "should be the `next` of an earlier page"


class NamePlace(NamedTuple):
    """A place in a list by names."""

    name: str


def encode_cursor(place: Iterable[Any] | None) -> str | None:
    """The cursor of a place; ``None`` for the end of the list."""
    if place is None:
        return None
    return base64.urlsafe_b64encode(json.dumps(list(place)).encode()).decode().rstrip("=")


def decode_cursor(kind: type[K], cursor: str | None) -> K | None:
    """The place that a cursor stands for, a named tuple; raises ``ProblemError`` (400)."""
    if cursor is None:
        return None
    try:
        values = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        place = kind(*values)
    except (ValueError, TypeError, RecursionError) as error:
        raise _invalid() from error
    hints = get_type_hints(kind)
    if not all(type(value) is hint for value, hint in zip(place, hints.values(), strict=True)):
        raise _invalid()
    return place


def _invalid() -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, f"cursor: {_REASON}", fields=(("cursor", _REASON),))
