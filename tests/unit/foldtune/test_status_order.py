"""Which status of a request id is the newest."""

from datetime import timedelta
from itertools import permutations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from foldtune.events import FineTuneStatus, State, now
from foldtune.status_order import StatusRecord, merge_status, supersedes

MOMENT = now()
PAGE = "https://example.com/log"
# The partition follows from the model; two models may share one.
PARTITIONS = {"a": 0, "b": 0, "c": 1}


def record(offset: int, state: State, seconds: float = 0, model: str = "a", **fields: Any) -> StatusRecord:
    at = MOMENT + timedelta(seconds=seconds)
    status = FineTuneStatus(request_id="r-1", model=model, state=state, at=at, **fields)
    return StatusRecord(partition=PARTITIONS[model], offset=offset, status=status)


def fold(records: list[StatusRecord]) -> tuple[StatusRecord, ...]:
    known: tuple[StatusRecord, ...] = ()
    for new in records:
        known = merge_status(known, new)
    return known


@st.composite
def topics(draw: st.DrawFn) -> list[StatusRecord]:
    """All that was ever published under one id: clocks that jump, ends that a paused worker publishes over."""
    offsets = draw(st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True))
    return [
        record(
            offset,
            draw(st.sampled_from(State)),
            draw(st.integers(-5, 5)),
            draw(st.sampled_from(sorted(PARTITIONS))),
            run_continues=draw(st.sampled_from([None, True])),
        )
        for offset in offsets
    ]


@given(topics(), st.data())
def test_reordered_and_duplicated_statuses_have_the_same_newest(
    published: list[StatusRecord], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(published))
    repeated = data.draw(st.lists(st.sampled_from(published)))
    assert fold([*shuffled, *repeated]) == fold(published)


@given(topics())
def test_one_of_two_statuses_of_a_request_is_newer(published: list[StatusRecord]) -> None:
    for first, second in permutations(published, 2):
        if first.status.model == second.status.model:
            assert supersedes(first, second) is not supersedes(second, first)


def test_offsets_take_precedence_over_timestamps() -> None:
    accepted, running = record(4, State.ACCEPTED, 10), record(5, State.RUNNING, 0)
    assert supersedes(running, accepted)
    assert not supersedes(accepted, running)
    assert not supersedes(running, running)


def test_a_final_state_is_final_even_at_a_lower_offset() -> None:
    cancelled, late = record(5, State.CANCELLED), record(6, State.RUNNING, 1)
    assert fold([cancelled, late]) == fold([late, cancelled]) == (cancelled,)


def test_the_first_end_of_a_request_counts() -> None:
    first, late = record(5, State.COMPLETED), record(6, State.FAILED, 1)
    assert fold([first, late]) == fold([late, first]) == (first,)


def test_a_run_that_went_on_for_others_has_ended_once_the_same_end_is_told_without_that() -> None:
    goes_on, stopped = (record(offset, State.CANCELLED, run_continues=on) for offset, on in ((5, True), (9, None)))
    for published in permutations([goes_on, stopped, goes_on, record(7, State.RUNNING)]):
        (newest,) = fold(list(published))
        assert (newest.offset, newest.status.run_continues) == (5, None)
    (newest,) = fold([goes_on, record(7, State.RUNNING), goes_on])
    assert newest.status.run_continues


def test_an_id_used_for_two_models_has_the_status_of_the_later_one() -> None:
    first, second = record(9, State.COMPLETED, 0, "a"), record(2, State.RUNNING, 60, "c")
    assert fold([first, second]) == fold([second, first]) == (second, first)


def test_the_log_url_is_inherited_within_a_model() -> None:
    running, evaluating = record(4, State.RUNNING, log_url=PAGE), record(5, State.EVALUATING)
    (newest,) = fold([running, evaluating, running])
    assert (newest.status.state, newest.status.log_url) == (State.EVALUATING, PAGE)
    other = record(7, State.RUNNING, 1, "b")
    assert fold([running, other])[0].status.log_url is None
