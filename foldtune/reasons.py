"""Turns a pydantic validation error into lines for people, each of which names a field and its bound."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from pydantic import ValidationError

from foldtune import excerpts
from foldtune.durations import EXAMPLES, spoken
from foldtune.errors import FoldtuneError, InvalidEventError
from foldtune.events import BUCKET, MODEL_URI, REQUEST_ID, SCHEMA_VERSION
from foldtune.knobs import MODEL_NAME

# An event may have many thousand errors; only the first ones are reported.
_MAX_ERRORS = 20
_MAX_FIELD = 100
# Location parts by which pydantic distinguishes the members of a union.
_UNION_MEMBER = re.compile(r"constrained-\w+|literal\[.*\]")
_SHOULD = "Input should be "
# How pydantic writes the bound of a duration that was parsed by ``foldtune.durations``.
_DURATION = re.compile(r"datetime\.timedelta\(([^()]*)\)")
# How it writes the bound of a list, by Python's name for it.
_ITEMS = re.compile(r"^\w+ (should have at \w+ \d+ items?) after validation")
_UNKNOWN_TYPES = {"union_tag_invalid", "union_tag_not_found"}
_PATTERNS = {
    MODEL_NAME: "1 to 64 lower-case letters, digits and any of . _ -, with a letter or digit at both ends",
    REQUEST_ID: "1 to 128 letters, digits and any of . _ -, with a letter or digit in front",
    MODEL_URI: "hf://ORG/NAME, file:///FOLDER or s3://BUCKET/PREFIX",
    BUCKET: "3 to 63 lower-case letters, digits, dots and hyphens",
}


# A label for metrics: undecodable, over the size limit of the whole event, against a rule, of a newer release, not in
# the partition of its folder, or met by a defect.
RejectedKind = Literal["unreadable", "oversized", "invalid", "unknown_version", "misplaced", "failed"]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected event, or one rejected log of a batch; each reason names a field and a bound."""

    offset: int
    position: int
    reasons: tuple[str, ...]
    # The rejected part of the message, so that it can be replayed by itself.
    value: bytes
    kind: RejectedKind = "invalid"


Location = tuple[int | str, ...]


def field_of(location: Location) -> str:
    """The dotted path of a field; the names of unknown ones come from the event, and are cut."""
    return ".".join(excerpts.excerpt(str(part), _MAX_FIELD) for part in location) or "event"


def reasons_of(error: ValidationError, named: Callable[[Location], str] = field_of) -> tuple[str, ...]:
    """One line for each invalid field: its name, as ``named`` formats it, and its bound.

    Of a version that is not known, that alone: what its fields mean is not known either.
    """
    if version := _unknown_version(error):
        return (version,)
    return excerpts.bounded([f"{named(location)}: {reason}" for location, reason, _ in invalid_fields(error)])


def invalid_fields(error: ValidationError) -> Iterator[tuple[Location, str, Any]]:
    """Each invalid field: its location, the reason, and pydantic's details of it.

    A field that may be of several types is one item: its reason lists all of them.
    """
    fields: dict[Location, list[Any]] = {}
    for details in error.errors(include_url=False)[:_MAX_ERRORS]:
        location = tuple(part for part in details["loc"] if not _UNION_MEMBER.fullmatch(str(part)))
        fields.setdefault(location, []).append(details)
    for location, (first, *others) in fields.items():
        # Invalid items do not count: that they are too few is no error of its own.
        if first["type"] == "too_short" and any(other[: len(location)] == location != other for other in fields):
            continue
        alternatives = [f" or {_reason(other).removeprefix(_SHOULD)}" for other in others]
        yield location, "".join([_reason(first), *alternatives]), first


def _unknown_version(error: ValidationError) -> str | None:
    for details in error.errors(include_url=False, include_context=False)[:_MAX_ERRORS]:
        location, version = details["loc"], details["input"]
        # A newer release may have types of its own: where the type decides on the model, nothing else is validated.
        if details["type"] in _UNKNOWN_TYPES and isinstance(version, dict):
            location, version = (*location, "schema_version"), version.get("schema_version")
        elif location[-1:] != ("schema_version",) or details["type"] != "less_than_equal":
            continue
        if isinstance(version, int) and version > SCHEMA_VERSION:
            shown = excerpts.excerpt(str(version), _MAX_FIELD)
            return (
                f"{field_of(location)}: version {shown} is of a newer release, this one knows them up to "
                f"{SCHEMA_VERSION}; upgrade it, then replay the event"
            )
    return None


def _reason(details: Any) -> str:
    if details["type"] == "extra_forbidden":
        return "unknown field"
    if details["type"] == "union_tag_invalid":
        # Without the type: it may be any text, and reasons are logged.
        return f"type should be {details['ctx']['expected_tags'].replace(', ', ' or ')}"
    if details["type"] == "datetime_type":
        # Of a number, nobody knows whether it is in seconds.
        return f"{_SHOULD}a time as text, for example 2026-01-31T09:30:00Z"
    if details["type"] == "time_delta_parsing":
        return f"{_SHOULD}a duration, for example {EXAMPLES}"
    if details["type"] == "string_pattern_mismatch" and (words := _PATTERNS.get(details["ctx"]["pattern"])):
        return f"{_SHOULD}{words}"
    text = _ITEMS.sub(r"Input \1", str(details["msg"]))
    return _DURATION.sub(_spoken, text.removeprefix("Value error, "))


def _spoken(match: re.Match[str]) -> str:
    parts = re.findall(r"(days|seconds|microseconds)=(-?\d+)", match[1])
    return spoken(timedelta(**{unit: int(number) for unit, number in parts}))


def explain(error: Exception) -> tuple[str, ...]:
    """Why an event was not handled: what is invalid in it, or the error that was met."""
    if isinstance(error, ValidationError):
        return reasons_of(error)
    # What foldtune raises is written for people.
    text = str(error) if isinstance(error, FoldtuneError) else f"{type(error).__name__}: {error}"
    return (excerpts.excerpt(text),)


def kind_of(error: Exception) -> RejectedKind:
    """Whether the event is not JSON at all, of a newer release, breaks a rule, or met a defect."""
    if isinstance(error, InvalidEventError):
        return "invalid"
    if not isinstance(error, ValidationError):
        return "failed"
    if _unknown_version(error):
        return "unknown_version"
    unreadable = any(details["type"] == "json_invalid" for details in error.errors(include_url=False))
    return "unreadable" if unreadable else "invalid"
