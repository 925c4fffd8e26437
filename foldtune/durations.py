"""Durations as people write them: ``90s``, ``6h``, ``1d 12h``, ``2w``; also ISO 8601 (``PT6H``) and seconds."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PART = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(ms|[smhdw])\s*")
EXAMPLES = "30s, 6h, 1d 12h or PT6H"


def _parse(value: object) -> object:
    """The duration of a text in words; anything else as it is, for pydantic's own forms."""
    if not isinstance(value, str) or not (text := value.strip()):
        return value
    parts, end = dict[str, float](), 0
    while match := _PART.match(text, end):
        number, unit = match.groups()
        if unit in parts:
            return value
        parts[unit], end = float(number), match.end()
    if end < len(text):
        return value
    try:
        return timedelta(**{_UNITS[unit]: number for unit, number in parts.items()})
    except OverflowError:
        return value


Duration = Annotated[timedelta, BeforeValidator(_parse)]


def spoken(duration: timedelta) -> str:
    """A duration as people write it, to the second; of two units at most."""
    seconds = max(int(duration.total_seconds()), 0)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if count := seconds // size:
            parts.append(f"{count}{unit}")
            seconds -= count * size
    return " ".join(parts[:2]) or "0s"
