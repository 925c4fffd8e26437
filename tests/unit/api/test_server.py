"""What the API in a cluster tells of a request."""

import asyncio
from datetime import timedelta
from itertools import permutations
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from api.server import Api, Statuses
from foldtune.client.client import FoldtuneClient
from foldtune.errors import PublishError
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.settings import Settings

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


class Silent(FoldtuneClient):
    """Keeps what it is to ask for; while ``broken``, no broker acknowledges it."""

    def __init__(self) -> None:
        self.asked: list[FineTuneRequested] = []
        self.broken = True

    def request_fine_tune(self, request: FineTuneRequested) -> None:
        self.asked.append(request)
        if self.broken:
            raise PublishError("fine-tune-requests", "no answer")


def test_what_was_perhaps_taken_can_be_sent_again_under_its_name() -> None:
    silent = Silent()

    async def talk() -> list[tuple[int, Any]]:
        server = TestServer(Api(silent, Statuses(Settings())).application(), host="127.0.0.1")
        async with TestClient(server) as caller:
            first = await caller.post("/requests", json={"model": "support"})
            answer = await first.json()
            silent.broken = False
            again = await caller.post("/requests", json={"model": "support", "request_id": answer["request_id"]})
            return [(first.status, answer), (again.status, await again.json())]

    (refused, answer), (taken, _) = asyncio.run(talk())
    assert (refused, taken) == (503, 202)
    assert [request.request_id for request in silent.asked] == [answer["request_id"]] * 2
