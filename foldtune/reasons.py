"""What is wrong with an event, in words: a validation error as lines that each name a field and its bound."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from foldtune.events import REQUEST_ID
from foldtune.knobs import MODEL_NAME

# An event may be wrong in many thousand places; the first ones are told.
_REASONS = 20
# How pydantic tells the arms of a union apart in an error's location.
_UNION_ARM = re.compile(r"constrained-\w+|literal\[.*\]")
_SHOULD = "Input should be "
_PATTERNS = {
    MODEL_NAME: "1 to 64 lower-case letters, digits and any of . _ -, with a letter or digit at both ends",
    REQUEST_ID: "1 to 128 letters, digits and any of . _ -, with a letter or digit in front",
}


# In a word, for counting: no event at all, one over the bound of its whole size, or one that breaks a rule.
RejectedKind = Literal["unreadable", "oversized", "invalid"]


@dataclass(frozen=True, slots=True)
class Rejected:
    """One event, or one log of an envelope, that cannot be taken, and why: each reason names a field and a bound."""

    offset: int
    position: int
    reasons: tuple[str, ...]
    # The part of the message that it concerns, so that it can be mended and replayed alone.
    value: bytes
    kind: RejectedKind = "invalid"


Location = tuple[int | str, ...]


def field_of(location: Location) -> str:
    """A place in an event as its path."""
    return ".".join(map(str, location)) or "event"


def reasons_of(error: ValidationError, named: Callable[[Location], str] = field_of) -> tuple[str, ...]:
    """A validation error as lines that say which field is wrong, as ``named`` names it, and what its bound is."""
    # What may be of several types is refused once for each: one reason that names all of them.
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False)[:_REASONS]:
        location = tuple(part for part in item["loc"] if not _UNION_ARM.fullmatch(str(part)))
        found.setdefault(named(location), []).append(_what_is_wrong(item))
    return tuple(
        f"{field}: {first}{''.join(f' or {other.removeprefix(_SHOULD)}' for other in others)}"
        for field, (first, *others) in found.items()
    )


def _what_is_wrong(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "no such name is known"
    if item["type"] == "string_pattern_mismatch" and (words := _PATTERNS.get(item["ctx"]["pattern"])):
        return f"{_SHOULD}{words}"
    return str(item["msg"]).removeprefix("Value error, ")


def kind_of(error: ValidationError) -> RejectedKind:
    """Whether an event could be read at all."""
    unreadable = any(item["type"] == "json_invalid" for item in error.errors(include_url=False))
    return "unreadable" if unreadable else "invalid"
