"""What the API in a cluster tells of a request."""

from datetime import timedelta
from itertools import permutations

from foldtune.api import Statuses
from infra.settings import Settings
from streams.events import FineTuneStatus, State, now

MOMENT = now()


def status(state: State, seconds: float) -> FineTuneStatus:
    return FineTuneStatus(request_id="r-1", model="support", state=state, at=MOMENT + timedelta(seconds=seconds))


def test_statuses_that_are_read_again_take_nothing_back() -> None:
    """After a start the topic's end is known first, and then all of it is read from its beginning."""
    statuses = Statuses(Settings())
    story = [status(state, seconds) for seconds, state in enumerate((State.ACCEPTED, State.RUNNING, State.EVALUATING))]
    statuses.take(story[-1])
    for one in story:
        statuses.take(one)
        assert statuses.newest("r-1") == story[-1]
    again = status(State.RUNNING, 3)
    statuses.take(again)
    assert statuses.newest("r-1") == again


def test_an_end_is_the_last_word_whatever_the_clocks_say() -> None:
    told = [status(State.ACCEPTED, 0), status(State.CANCELLED, 1), status(State.RUNNING, 2)]
    for order in permutations(told):
        statuses = Statuses(Settings())
        for one in order:
            statuses.take(one)
        assert statuses.newest("r-1") == told[1]
