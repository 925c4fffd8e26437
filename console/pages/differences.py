"""What differs between two sides of a change, field by field."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

from foldtune.durations import spoken


class Difference(NamedTuple):
    """A field with its text before and after; ``None`` on a side that does not have it."""

    field: str
    before: str | None
    after: str | None


def differences(before: Any, after: Any) -> list[Difference]:
    """The fields that are not the same on both sides, in the order of the later one."""
    old, new = dict(_fields(before)), dict(_fields(after))
    names = [*new, *(name for name in old if name not in new)]
    return [Difference(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    # Values come as deep as JSON may be, and no deeper than its parser goes.
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _fields(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(part, dict) for part in value):
        for number, part in enumerate(value, start=1):
            # Rules are known by their names, wherever they stand.
            yield from _fields(part, f"{name} {part.get('name', number)}")
    elif value is not None and value not in ({}, [], ()):
        yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, timedelta):
        return spoken(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
