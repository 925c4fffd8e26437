"""Durations as people write them."""

from datetime import timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from foldtune.durations import Duration, spoken

ADAPTER: TypeAdapter[timedelta] = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("6h", 21_600),
        ("1d 12h", 129_600),
        ("1d12h", 129_600),
        (" 2w ", 1_209_600),
        ("1.5h", 5_400),
        ("250ms", 0.25),
        ("PT6H", 21_600),
        ("00:10:00", 600),
        (45, 45),
        (timedelta(minutes=1), 60),
    ],
)
def test_a_duration_is_read(text: object, seconds: float) -> None:
    assert ADAPTER.validate_python(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "6 hours", "h", "6h 7h", "6h!", "-6h", "1e9w", "9" * 15 + "w", "٣h!", None])
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (3_540, "59m"), (3_600, "1h"), (90_061, "1d 1h"), (-5, "0s"), (3_601, "1h 1s")],
)
def test_a_duration_is_said(seconds: int, text: str) -> None:
    assert spoken(timedelta(seconds=seconds)) == text
