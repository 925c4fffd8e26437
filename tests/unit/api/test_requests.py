"""``/requests``: creation, lists, statuses, cancelling, and following."""

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.access import Caller
from api.context import Services
from api.routes import requests as routes
from api.routes.requests import _events
from api.submission import MAX_BODY_BYTES
from api.view.system import SystemView
from foldtune.events import FineTuneCancelled, FineTuneRequested, FineTuneStatus, State, now
from foldtune.knobs import DataSelection
from foldtune.object_keys import attempt_key
from foldtune.topics import Topic

from .conftest import MemoryPublisher, Record, client_of, status_record

START = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_request_is_published_after_it_is_audited(client: TestClient, publisher: MemoryPublisher) -> None:
    answer = client.post("/requests", json={"request_id": "r-1", "model": "support", "training": {"epochs": 5}})
    assert (answer.status_code, answer.json()) == (202, {"request_id": "r-1", "model": "support"})
    assert [topic for topic, _, _ in publisher.events] == [Topic.AUDIT, Topic.FINE_TUNE_REQUESTS]
    [request] = publisher.on(Topic.FINE_TUNE_REQUESTS)
    assert isinstance(request, FineTuneRequested)
    assert (request.requested_by, request.origin, publisher.events[1][2]) == ("anybody", "api", "support")
    [entry] = publisher.audited
    assert (entry.who, entry.action, entry.target) == ("anybody", "request.create", "support/r-1")
    assert entry.after
    assert entry.after["training"]["epochs"] == 5
    assert entry.trace_id == answer.headers["x-request-id"]


def made(view: SystemView, monkeypatch: pytest.MonkeyPatch, value: bytes | None) -> None:
    """All of ``fine-tune-requests`` is known, with this first record, which may be gone by now."""

    async def read_record(*_: Any) -> Record | None:
        return None if value is None else Record(value)

    monkeypatch.setattr(routes, "read_record", read_record)
    monkeypatch.setattr(view, "_requested", SimpleNamespace(age_seconds=0.0))
    view._places.apply(Record(value or b'{"request_id": "r-1", "model": "support"}'))


FIRST = {"request_id": "r-1", "model": "support", "data": {"folders": ["a"]}, "training": {"epochs": 2}}


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize(
    ("changes", "different"),
    [
        ({}, None),
        # The default, written out.
        ({"seed": 0, "weights": {"focus": 1.0}}, None),
        ({"training": {"epochs": 3}}, "training"),
        ({"data": {"folders": ["b"]}, "seed": 1}, "data, seed"),
        ({"model": "sales", "seed": 1}, None),
    ],
)
def test_an_id_stands_for_one_request(  # noqa: PLR0917  fixtures
    client: TestClient,
    publisher: MemoryPublisher,
    view: SystemView,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    different: str | None,
    is_told: bool,
) -> None:
    client.post("/requests", json=FIRST)
    [first] = publisher.on(Topic.FINE_TUNE_REQUESTS)
    publisher.events.clear()
    made(view, monkeypatch, first.encode())
    if is_told:
        view.requests.apply(status_record())
    answer = client.post("/requests", json=FIRST | changes)
    if different is None:
        assert answer.status_code == 202
    else:
        assert answer.status_code == 409
        assert f"was made with other values of {different};" in answer.json()["errors"][0]
        assert not publisher.events


def test_a_first_request_that_was_not_valid_is_another_one(
    client: TestClient, publisher: MemoryPublisher, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(view, monkeypatch, b'{"request_id": "r-1", "model": "support", "training": {"epochs": 1000}}')
    assert client.post("/requests", json={"request_id": "r-1", "model": "support"}).status_code == 409
    assert not publisher.events


def test_a_first_request_that_is_gone_cannot_be_compared(
    client: TestClient, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(view, monkeypatch, None)
    view.requests.apply(status_record())
    assert client.post("/requests", json=FIRST).status_code == 202


def test_a_known_request_is_compared_once_all_requests_are_read(client: TestClient, view: SystemView) -> None:
    view.requests.apply(status_record())
    assert client.post("/requests", json=FIRST).status_code == 503
    assert client.post("/requests", json=FIRST | {"request_id": "r-2"}).status_code == 202


def test_a_request_that_is_known_is_not_published_again(
    client: TestClient, publisher: MemoryPublisher, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(view, monkeypatch, None)
    view.requests.apply(status_record())
    answer = client.post("/requests", json={"request_id": "r-1", "model": "support"})
    assert (answer.status_code, answer.json(), publisher.events) == (202, {"request_id": "r-1", "model": "support"}, [])
    assert client.post("/requests", json={"request_id": "r-1", "model": "sales"}).status_code == 202
    assert [event.model for event in publisher.on(Topic.FINE_TUNE_REQUESTS)] == ["sales"]


def test_a_possibly_published_request_can_be_sent_again_under_its_id(
    client: TestClient, publisher: MemoryPublisher
) -> None:
    publisher.broken = True
    answer = client.post("/requests", json={"model": "support"})
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    publisher.broken = False
    again = {"model": "support", "request_id": answer.json()["request_id"]}
    assert client.post("/requests", json=again).status_code == 202


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (b" " * (MAX_BODY_BYTES + 1), {}, 413),
        (b'{"model": "support"}', {"Content-Type": "text/plain"}, 415),
        (b"nope", {"Content-Encoding": "gzip"}, 415),
        (b"{", {}, 400),
    ],
)
def test_a_refused_body_is_a_problem(
    client: TestClient, publisher: MemoryPublisher, content: bytes, headers: dict[str, str], code: int
) -> None:
    answer = client.post("/requests", content=content, headers={"Content-Type": "application/json"} | headers)
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/problem+json")
    document = answer.json()
    assert (document["status"], document["detail"]) == (code, "; ".join(document["errors"]))
    assert not publisher.events


# ── Statuses ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_status_is_answered_as_it_is_on_the_topic(client: TestClient, view: SystemView) -> None:
    record = status_record(3, State.FAILED, reasons=("no luck",))
    view.requests.apply(record)
    for path in ("/requests/r-1", "/requests/r-1?model=support", "/models/support/requests/r-1"):
        answer = client.get(path)
        assert (answer.status_code, answer.content) == (200, record.value)


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/requests/r-2", 404, "'r-2'"),
        ("/requests/..%2Fx", 404, "no such route"),
        ("/requests/-x", 400, "id: "),
        (f"/requests/{'x' * 129}", 400, "128"),
        ("/requests/r-1?model=sales", 404, "'r-1' of model 'sales'"),
        ("/requests/r-1?model=Not%20A%20Name", 400, "model: "),
        ("/models/sales/requests/r-1", 404, "'r-1' of model 'sales'"),
        ("/models/Sales/requests/r-1", 400, "model: "),
    ],
)
def test_an_unknown_or_invalid_name_is_refused(
    client: TestClient, view: SystemView, path: str, code: int, words: str
) -> None:
    view.requests.apply(status_record())
    answer = client.get(path)
    assert answer.status_code == code
    assert words in answer.json()["errors"][0]


def test_a_status_that_is_known_is_not_sent_again(client: TestClient, view: SystemView) -> None:
    view.requests.apply(status_record(1))
    etag = client.get("/requests/r-1").headers["etag"]
    unchanged = client.get("/requests/r-1", headers={"If-None-Match": f'"x", W/{etag}'})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    view.requests.apply(status_record(2, State.RUNNING))
    changed = client.get("/requests/r-1", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


# ── Lists ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fill(view: SystemView, count: int) -> None:
    for number in range(count):
        model, state = f"m{number % 3}", [State.COMPLETED, State.FAILED][number % 2]
        moment = START + timedelta(minutes=number)
        view.requests.apply(status_record(number, state, request_id=f"r-{number}", model=model, at=moment))


def pages(client: TestClient, **query: Any) -> list[list[str]]:
    found: list[list[str]] = []
    while True:
        answer = client.get("/requests", params=query).json()
        found.append([item["request_id"] for item in answer["items"]])
        if answer["next"] is None:
            return found
        query["cursor"] = answer["next"]


def test_pages_have_every_request_once_the_newest_first(client: TestClient, view: SystemView) -> None:
    fill(view, 25)
    found = pages(client, limit=10)
    assert [len(page) for page in found] == [10, 10, 5]
    assert list(chain(*found)) == [f"r-{number}" for number in reversed(range(25))]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"model": "m1"}, {1, 4, 7, 10}),
        ({"state": "failed"}, {1, 3, 5, 7, 9, 11}),
        ({"state": ["failed", "completed"], "model": "m0"}, {0, 3, 6, 9}),
        ({"since": "2026-03-01T00:05:00Z", "until": "2026-03-01T00:07:00Z"}, {5, 6}),
        ({"model": "none"}, set()),
    ],
)
def test_filters(client: TestClient, view: SystemView, query: dict[str, Any], expected: set[int]) -> None:
    fill(view, 12)
    assert set(chain(*pages(client, **query))) == {f"r-{number}" for number in expected}


def test_a_page_looks_at_so_many_requests_only(
    client: TestClient, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.view.requests._MAX_LOOKED_AT", 10)
    fill(view, 31)
    found = pages(client, state="failed", limit=200)
    assert len(found) == 4
    assert len(list(chain(*found))) == 15
    # Of one model only its own are looked at.
    assert [len(page) for page in pages(client, model="m0", limit=200)] == [10, 1]


def test_a_cursor_says_nothing_of_models_that_its_caller_may_not_see(
    services: Services, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.view.requests._MAX_LOOKED_AT", 2)
    fill(view, 12)
    for offset in range(3):
        view.apply_status(status_record(100 + offset, request_id=f"own-{offset}"))
    limited = client_of(services, "of-support")
    answers = [limited.get("/requests", params={"limit": 1}).json()]
    while cursor := answers[-1]["next"]:
        assert json.loads(base64.urlsafe_b64decode(cursor + "==="))[1] == "support"
        answers.append(limited.get("/requests", params={"limit": 1, "cursor": cursor}).json())
    assert [item["request_id"] for answer in answers for item in answer["items"]] == ["own-2", "own-1", "own-0"]
    assert limited.get("/requests", params={"model": "m0"}).json() == {"items": [], "next": None}


def test_a_caller_has_so_many_open_streams_at_most(
    services: Services, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.context.MAX_STREAMS", 1)
    view.apply_status(status_record(5, State.FAILED))
    events, viewer = "/models/support/requests/r-1/events", client_of(services, "viewer")
    with services.rate_limit.stream(Caller("viewer")):
        answer = viewer.get(events)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
        assert client_of(services, "operator").get(events).status_code == 200
    # One that has ended does not count.
    assert [viewer.get(events).status_code for _ in range(3)] == [200, 200, 200]


def test_line_ends_in_a_status_do_not_end_its_event(client: TestClient, view: SystemView) -> None:
    value = status_record(5, State.FAILED).value
    view.apply_status(Record(json.dumps(json.loads(value), indent=1).replace("\n", "\r\n").encode(), 5))
    lines = client.get("/models/support/requests/r-1/events").text.splitlines()
    assert lines[0:2] == ["id: 5", "event: status"]
    assert json.loads(lines[2].removeprefix("data: ")) == json.loads(value)
    assert lines[3:] == [""]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"limit": 0}, "limit: "),
        ({"limit": 201}, "limit: Input should be less than or equal to 200"),
        ({"state": "done"}, "state.0: "),
        ({"since": "yesterday"}, "since: "),
        ({"since": "2026-03-01T00:00:00"}, "since: "),
        ({"since": "20260301"}, "since: should be written as in 2026-01-31 or 2026-01-31T12:00:00Z, not as the number"),
        ({"until": "1700000000.5"}, "until: should be written as in 2026-01-31 or 2026-01-31T12:00:00Z, not as the"),
        ({"cursor": "x"}, "cursor: "),
        ({"cursor": "W10"}, "cursor: "),
        ({"cursor": "WyJhIiwgMSwgMl0"}, "cursor: "),
        ({"model": "../x"}, "model: "),
    ],
)
def test_an_invalid_parameter_is_named_with_its_bound(client: TestClient, query: dict[str, Any], words: str) -> None:
    answer = client.get("/requests", params=query)
    assert answer.status_code == 400
    assert answer.json()["errors"][0].startswith(words), answer.json()


# ── Changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_cancelled_once_and_not_after_its_end(
    client: TestClient, publisher: MemoryPublisher, view: SystemView
) -> None:
    assert client.post("/models/support/requests/r-1/cancel").status_code == 404
    view.requests.apply(status_record(1, State.RUNNING))
    assert client.post("/models/support/requests/r-1/cancel").status_code == 202
    [event] = publisher.on(Topic.FINE_TUNE_REQUESTS)
    assert isinstance(event, FineTuneCancelled)
    assert (event.request_id, event.model, event.requested_by) == ("r-1", "support", "anybody")
    [entry] = publisher.audited
    assert (entry.action, entry.target, entry.before) == ("request.cancel", "support/r-1", {"state": "running"})
    view.requests.apply(status_record(2, State.CANCELLED))
    assert client.post("/models/support/requests/r-1/cancel").status_code == 409


@pytest.mark.parametrize(("folders", "code"), [(("handbook",), 202), (("handbook", "pricing"), 403), (None, 403)])
def test_a_grant_for_folders_neither_reads_nor_cancels_requests_of_others(
    services: Services,
    view: SystemView,
    monkeypatch: pytest.MonkeyPatch,
    folders: tuple[str, ...] | None,
    code: int,
) -> None:
    original = FineTuneRequested(
        request_id="r-1", model="support", requested_at=START, data=DataSelection(folders=folders)
    )
    made(view, monkeypatch, original.encode())
    view.requests.apply(status_record(1, State.RUNNING))
    client = client_of(services, "of-handbook")
    services.store.put(attempt_key("support", "r-1", 1, "log"), b"line")
    for what in ("request", "log"):
        assert client.get(f"/models/support/requests/r-1/{what}").status_code == (200 if code == 202 else 403)
    assert client.post("/models/support/requests/r-1/cancel").status_code == code
    assert client_of(services, "of-support").post("/models/support/requests/r-1/cancel").status_code == 202


def test_a_change_that_cannot_be_audited_is_not_made(
    client: TestClient, publisher: MemoryPublisher, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    view.requests.apply(status_record(1, State.RUNNING))
    taken = publisher.publish

    async def without_audit(topic: Topic, event: Any, key: str) -> None:
        publisher.broken = topic is Topic.AUDIT
        await taken(topic, event, key)

    monkeypatch.setattr(publisher, "publish", without_audit)
    assert client.post("/models/support/requests/r-1/cancel").status_code == 503
    assert client.post("/requests", json={"model": "support"}).status_code == 503
    assert not publisher.events


@pytest.mark.parametrize(("state", "code"), [(State.RUNNING, 409), (State.COMPLETED, 409), (State.FAILED, 202)])
def test_a_failed_request_is_made_again_as_it_was(  # noqa: PLR0917  fixtures
    client: TestClient,
    publisher: MemoryPublisher,
    view: SystemView,
    monkeypatch: pytest.MonkeyPatch,
    state: State,
    code: int,
) -> None:
    original = FineTuneRequested(
        request_id="r-1", model="support", requested_at=START, requested_by="bob", origin="person", seed=7
    )

    made(view, monkeypatch, original.encode())
    view.requests.apply(status_record(1, state))
    answer = client.post("/models/support/requests/r-1/retry")
    assert answer.status_code == code
    assert client.get("/models/support/requests/r-1/request").json() == json.loads(original.encode())
    if code == 202:
        [request] = publisher.on(Topic.FINE_TUNE_REQUESTS)
        assert (request.seed, request.requested_by, request.origin) == (7, "anybody", "api")
        assert request.request_id == answer.json()["request_id"] != "r-1"
        [entry] = publisher.audited
        assert (entry.action, entry.before) == ("request.retry", {"retry_of": "r-1"})


# ── Following ────────────────────────────────────────────────────────────────────────────────────────────────────────


def events(text: bytes) -> list[tuple[int, str]]:
    """Id and state of each event."""
    found = []
    for block in text.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":") and line)
        if fields:
            found.append((int(fields["id"]), FineTuneStatus.model_validate_json(fields["data"]).state.value))
    return found


def test_a_request_is_followed_to_its_end(services: Services, view: SystemView) -> None:
    view.requests.apply(status_record(3, State.ACCEPTED))

    async def follow() -> bytes:
        entry = view.requests.get("support", "r-1")
        assert entry
        following = _events(services, entry, -1)
        text = await anext(following)
        view.requests.apply(status_record(5, State.RUNNING))
        text += await anext(following)
        view.requests.apply(status_record(6, State.EVALUATING))
        view.requests.apply(status_record(8, State.COMPLETED))
        async for part in following:
            text += part
        return text

    found = events(asyncio.run(follow()))
    assert found == [(3, "accepted"), (5, "running"), (8, "completed")]
    assert not view.requests._waiting


def test_a_status_that_is_published_under_two_keys_is_sent_once(services: Services, view: SystemView) -> None:
    at = now()

    async def follow() -> bytes:
        view.requests.apply(status_record(3, State.RUNNING, at=at))
        entry = view.requests.get("support", "r-1")
        assert entry
        following = _events(services, entry, -1)
        text = await anext(following)
        rest = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
        view.requests.apply(status_record(4, State.RUNNING, at=at))
        await asyncio.wait([rest], timeout=0.05)
        view.requests.apply(status_record(5, State.COMPLETED))
        return text + await rest

    assert events(asyncio.run(follow())) == [(3, "running"), (5, "completed")]


def test_a_follower_that_comes_back_gets_what_it_has_not_seen(client: TestClient, view: SystemView) -> None:
    view.requests.apply(status_record(3, State.ACCEPTED))
    view.requests.apply(status_record(7, State.COMPLETED))
    path = "/models/support/requests/r-1/events"
    again = client.get(path, headers={"Last-Event-ID": "3"})
    assert again.headers["content-type"].startswith("text/event-stream")
    assert events(again.content) == [(7, "completed")]
    assert client.get(path, headers={"Last-Event-ID": "7"}).status_code == 204
    assert client.get(path, headers={"Last-Event-ID": "seven"}).status_code == 400


def test_a_stream_ends_after_a_while_so_that_its_token_is_checked_again(
    services: Services, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_KEEP_ALIVE_SECONDS", 0.01)
    monkeypatch.setattr(routes, "_MAX_STREAM_SECONDS", 0.05)
    view.requests.apply(status_record(3, State.ACCEPTED))

    async def follow() -> bytes:
        entry = view.requests.get("support", "r-1")
        assert entry
        async with asyncio.timeout(5):
            return b"".join([part async for part in _events(services, entry, -1)])

    assert events(asyncio.run(follow())) == [(3, "accepted")]
    assert not view.requests._waiting


def test_streams_end_when_the_process_does(services: Services, view: SystemView) -> None:
    view.requests.apply(status_record(3, State.ACCEPTED))

    async def follow() -> list[bytes]:
        entry = view.requests.get("support", "r-1")
        assert entry
        following = _events(services, entry, -1)
        found = [await anext(following)]
        asyncio.get_running_loop().call_soon(view.requests.end)
        async with asyncio.timeout(5):
            return found + [part async for part in following]

    assert len(asyncio.run(follow())) == 1
    assert not view.requests._waiting


def test_a_silent_stream_is_kept_alive(services: Services, view: SystemView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_KEEP_ALIVE_SECONDS", 0.01)
    view.requests.apply(status_record(3, State.ACCEPTED))

    async def follow() -> bytes:
        entry = view.requests.get("support", "r-1")
        assert entry
        return await anext(_events(services, entry, 3))

    assert asyncio.run(follow()).startswith(b":")


def test_the_end_of_the_newest_attempt_s_log_is_told(client: TestClient, services: Services, view: SystemView) -> None:
    view.requests.apply(status_record())
    address = "/models/support/requests/r-1/log"
    assert client.get(address).status_code == 404
    for number, content in ((9, b"old"), (10, b"first line\n" + b"\xff" * (64 << 10) + b"\nlast line\n")):
        services.store.put(attempt_key("support", "r-1", number, "log"), content)
    services.store.put(attempt_key("support", "r-1", 11, "heartbeat"), b"")
    services.store.put(attempt_key("support", "r-2", 12, "log"), b"another job's")
    log = client.get(address).json()
    assert (log["attempt"], log["bytes"], log["text"]) == (10, 11 + (64 << 10) + 11, "last line\n")
    assert client_of(services, "viewer").get(address).status_code == 403
    assert client.get("/models/support/requests/r-2/log").status_code == 404
    services.store.put(attempt_key("support", "r-1", 13, "log"), b" " * ((8 << 20) + 1))
    assert client.get(address).status_code == 409
