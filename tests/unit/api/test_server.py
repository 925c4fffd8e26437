"""The API's aiohttp front."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from api.routes import MAX_BODY_BYTES
from api.server import ApiServer, StatusCache
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.settings import Settings
from foldtune.status_order import StatusRecord

JSON = {"Content-Type": "application/json"}
MOMENT = now()
T = TypeVar("T")


def record(offset: int, state: State) -> StatusRecord:
    at = MOMENT + timedelta(seconds=offset)
    status = FineTuneStatus(request_id="r-1", model="support", state=state, at=at)
    return StatusRecord(partition=0, offset=offset, status=status)


@pytest.fixture
def statuses() -> StatusCache:
    return StatusCache(Settings())


@pytest.fixture
def published() -> list[FineTuneRequested]:
    return []


@pytest.fixture
def server(published: list[FineTuneRequested], statuses: StatusCache) -> ApiServer:
    return ApiServer(published.append, statuses)


def talk(server: ApiServer, calls: Callable[[TestClient[Request, Application]], Awaitable[T]]) -> T:
    """What ``calls`` returns, with a client of a running server."""

    async def run() -> T:
        async with TestClient(TestServer(server.application(), host="127.0.0.1")) as client:
            return await calls(client)

    return asyncio.run(run())


def call(server: ApiServer, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async def one(client: TestClient[Request, Application]) -> tuple[int, Any]:
        async with client.request(method, path, **options) as response:
            assert response.headers["Cache-Control"] == "no-store"
            return response.status, await response.json()

    return talk(server, one)


@pytest.mark.parametrize(("headers", "caller"), [({"X-Forwarded-User": "ada"}, "ada"), ({}, "unknown")])
def test_the_proxy_names_the_caller(
    server: ApiServer, published: list[FineTuneRequested], headers: dict[str, str], caller: str
) -> None:
    code, content = call(server, "POST", "/requests", json={"model": "support"}, headers=headers)
    assert code == 202
    [request] = published
    assert (request.request_id, request.requested_by) == (content["request_id"], caller)


def test_a_status_is_answered(server: ApiServer, statuses: StatusCache) -> None:
    statuses.add(record(1, State.ACCEPTED))
    code, content = call(server, "GET", "/requests/r-1")
    assert (code, content["state"]) == (200, "accepted")
    assert call(server, "GET", "/requests/r-1?model=support") == (200, content)
    assert call(server, "GET", "/requests/r-1?model=sales")[0] == 404
    assert call(server, "GET", "/requests/r-2")[0] == 404
    assert call(server, "GET", "/requests/..%2Fx")[0] == 400


def test_a_body_over_the_bound_is_refused_in_json(server: ApiServer, published: list[FineTuneRequested]) -> None:
    code, content = call(server, "POST", "/requests", data=b" " * (MAX_BODY_BYTES + 1), headers=JSON)
    assert (code, content["errors"]) == (413, [f"body: at most {MAX_BODY_BYTES} bytes"])
    assert not published


def test_a_body_that_is_not_of_its_encoding_is_refused_in_json(server: ApiServer) -> None:
    code, content = call(server, "POST", "/requests", data=b"nope", headers=JSON | {"Content-Encoding": "gzip"})
    assert (code, content["errors"]) == (400, ["body: it ends early, or is not of its Content-Encoding"])


def test_a_form_that_a_browser_sends_from_anywhere_is_refused(
    server: ApiServer, published: list[FineTuneRequested]
) -> None:
    for body in (b'{"model": "support"}', {"model": "support"}):
        code, content = call(server, "POST", "/requests", data=body)
        assert (code, published) == (415, [])
        assert content["errors"][0].startswith("content-type: should be application/json, got ")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "10.1.2.3:8080", "[::1]:8080", "api.example.com", "Bind:80"]
)
def test_the_api_answers_under_addresses_and_the_names_that_it_is_given(host: str, statuses: StatusCache) -> None:
    server = ApiServer(lambda _: None, statuses, ("bind", "API.example.com"))
    assert call(server, "GET", "/requests/r-1", headers={"Host": host})[0] == 404


@pytest.mark.parametrize(
    "host",
    ["evil.example", "api.example.com.evil.example", "127.0.0.1.evil.example:8080", "", "a:b:c", "api.example.com@x"],
)
def test_the_api_refuses_calls_under_any_other_name(host: str, statuses: StatusCache) -> None:
    server = ApiServer(lambda _: None, statuses, ("api.example.com",))
    for path in ("/requests/r-1", "/health", "/other"):
        code, content = call(server, "GET", path, headers={"Host": host})
        assert (code, content["errors"]) == (421, [f"host: {host!r} is none of this API's names (api.hosts)"])


def test_other_routes_and_methods_are_refused_in_json(server: ApiServer) -> None:
    assert call(server, "GET", "/models") == (404, {"errors": ["no such route: GET /models"]})
    assert call(server, "DELETE", "/requests/r-1") == (405, {"errors": ["no such route: DELETE /requests/r-1"]})


def test_statuses_are_answered_while_publishing_waits_for_the_brokers(statuses: StatusCache) -> None:
    waiting = threading.Event()
    statuses.add(record(1, State.ACCEPTED))

    def publish(_: FineTuneRequested) -> None:
        assert waiting.wait(20)

    async def calls(client: TestClient[Request, Application]) -> tuple[int, int]:
        post = asyncio.create_task(client.post("/requests", json={"model": "support"}))
        try:
            get = await client.get("/requests/r-1")
        finally:
            waiting.set()
        return get.status, (await post).status

    assert talk(ApiServer(publish, statuses), calls) == (200, 202)


def test_statuses_reread_after_a_restart_change_nothing(statuses: StatusCache) -> None:
    """At a start the topic is read to its end, and then from its beginning again."""
    history = [record(offset, state) for offset, state in enumerate((State.ACCEPTED, State.RUNNING, State.EVALUATING))]
    for old in (*history, *history):
        statuses.add(old)
    assert statuses.newest("r-1") == history[-1].status
    retried = record(3, State.RUNNING)
    statuses.add(retried)
    assert statuses.newest("r-1") == retried.status


def test_the_api_is_unhealthy_while_the_topic_is_not_read(server: ApiServer) -> None:
    async def health(client: TestClient[Request, Application]) -> int:
        return (await client.get("/health")).status

    assert talk(server, health) == 503
