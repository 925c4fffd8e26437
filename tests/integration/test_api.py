"""The HTTP API as a process, on real Kafka."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.kafka import Publisher
from foldtune.settings import Settings
from foldtune.topics import Topic
from tests.running_api import running_api
from tests.support import Reader

BAD: list[tuple[Any, str]] = [
    (b"{", "body: should be JSON"),
    (b"[" * 100_000, "body: should be JSON"),
    ([], "body: should be a JSON object"),
    ({"model": "helpdesk", "requested_by": "root"}, "body: unknown fields: requested_by"),
    ({"model": "../x"}, "model"),
    ({"model": "helpdesk", "training": {"epochs": 1000}}, "training.epochs"),
]


def call(url: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers)  # noqa: S310 - this machine's own server
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        content = error.read()
        return error.code, json.loads(content) if content.startswith(b"{") else {}


@contextmanager
def follow(url: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The statuses of a stream of server-sent events."""
    with urllib.request.urlopen(url, timeout=20) as stream:  # noqa: S310
        yield (json.loads(line.removeprefix(b"data: ")) for line in stream if line.startswith(b"data: "))


@pytest.fixture
def api(variables: dict[str, str], settings: Settings, tmp_path: Path) -> Iterator[str]:
    with running_api(variables, tmp_path) as address:
        yield address


def test_a_request_is_published_and_its_status_returned(api: str, settings: Settings, publisher: Publisher) -> None:
    code, answer = call(f"{api}/requests", {"model": "helpdesk"}, **{"X-Forwarded-User": "ada"})
    assert code == 202
    with Reader(settings, Topic.FINE_TUNE_REQUESTS) as reader:
        (record,) = reader.until(lambda records: len(records) == 1)
    request = FineTuneRequested.model_validate_json(record.value)
    assert (request.request_id, request.model) == (answer["request_id"], "helpdesk")
    assert (request.requested_by, request.origin) == ("ada", "api")
    where = f"{api}/requests/{request.request_id}"
    assert call(where)[0] == 404
    status = FineTuneStatus(request_id=request.request_id, model="helpdesk", state=State.ACCEPTED, at=now())
    publisher.send(Topic.FINE_TUNE_STATUS, status, key=request.request_id, partition_by="helpdesk")
    publisher.flush()
    deadline = time.monotonic() + 30
    while (told := call(where))[0] == 404 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert told[0] == 200
    assert told[1]["state"] == "accepted"
    assert call(f"{api}/models/helpdesk/requests/{request.request_id}/request")[1]["requested_by"] == "ada"
    again = {"model": "helpdesk", "request_id": request.request_id}
    assert (call(f"{api}/requests", again)[0], call(f"{api}/requests", again | {"seed": 1})[0]) == (202, 409)
    with follow(f"{api}/models/helpdesk/requests/{request.request_id}/events") as events:
        assert next(events)["state"] == "accepted"
        assert call(f"{api}/models/helpdesk/requests/{request.request_id}/cancel", b"")[0] == 202
        ended = status.model_copy(update={"state": State.CANCELLED})
        publisher.send(Topic.FINE_TUNE_STATUS, ended, key=request.request_id, partition_by="helpdesk")
        publisher.flush()
        assert [event["state"] for event in events] == ["cancelled"]
    assert call(f"{api}/models/helpdesk/requests/{request.request_id}/retry", b"")[0] == 202
    deadline = time.monotonic() + 30
    while len(entries := call(f"{api}/audit")[1]["items"]) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert {entry["action"] for entry in entries} == {"request.create", "request.cancel", "request.retry"}
    with Reader(settings, Topic.FINE_TUNE_REQUESTS) as reader:
        records = reader.until(lambda records: len(records) == 3)
    assert [json.loads(record.value)["type"] for record in records] == [
        "fine_tune_requested",
        "fine_tune_cancelled",
        "fine_tune_requested",
    ]


def test_an_invalid_request_is_answered_with_the_reason(api: str) -> None:
    for body, words in BAD:
        code, answer = call(f"{api}/requests", body)
        assert code == 400
        assert words in answer["errors"][0]
    assert call(f"{api}/requests", b" " * (256 * 1024 + 1))[0] == 413
    assert call(f"{api}/requests", {"model": "helpdesk"}, **{"Content-Type": "text/plain"})[0] == 415
    assert call(f"{api}/requests", {"model": "helpdesk"}, Host="foldtune.evil.example")[0] == 421
