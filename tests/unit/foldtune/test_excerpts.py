"""What is quoted from events is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldtune.events import FineTuneStatus, State, now
from foldtune.excerpts import bounded, excerpt, first_names


@pytest.mark.slow
@given(st.text(max_size=300), st.integers(1, 100))
def test_an_excerpt_is_short_and_cut_once(text: str, size: int) -> None:
    short = excerpt(text, size)
    assert len(short.encode()) <= size + len("…".encode())
    assert excerpt(short, size) == short


def test_ten_names_are_quoted_and_the_others_counted() -> None:
    names = [f"n{number}" * 100 for number in range(20_000)]
    reasons = list(first_names(names, before="data.folders: unknown folder", more="data.folders: {} more"))
    assert len(reasons) == 11
    assert reasons[-1] == "data.folders: 19990 more"
    assert sum(map(len, reasons)) < 2_000
    assert list(first_names(["a b"], before="unknown", more="")) == ["unknown 'a b'"]


def test_a_status_is_bounded_whoever_writes_it_and_however_often_it_is_read() -> None:
    reasons = tuple("🗂" * 10_000 for _ in range(1_000))
    status = FineTuneStatus(request_id="r", model="m", state=State.FAILED, at=now(), reasons=reasons, warnings=reasons)
    assert len(status.encode()) < 30_000
    assert status.reasons[-1] == "and 975 more"
    assert FineTuneStatus.model_validate_json(status.encode()) == status
    assert bounded(("short",)) == ("short",)
