"""What the routes answer, without a server."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from api.routes import MAX_BODY_BYTES, Answer, request_status, submit_request
from foldtune.errors import ObjectStoreError, OutOfBoundsError, PublishError
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now


class Topic:
    """Keeps what is published; with ``error`` set, raises it."""

    def __init__(self) -> None:
        self.requests: list[FineTuneRequested] = []
        self.error: Exception | None = None

    def publish(self, request: FineTuneRequested) -> None:
        if self.error:
            raise self.error
        self.requests.append(request)


@pytest.fixture
def topic() -> Topic:
    return Topic()


def submit(topic: Topic, body: object, caller: str = "user-7") -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return plain(submit_request(content, "application/json", caller, topic.publish))


def plain(answer: Answer) -> tuple[int, dict[str, Any]]:
    return answer.status.value, answer.content


def newest_status(request_id: str, model: str | None) -> FineTuneStatus | None:
    """One request is known."""
    return (
        FineTuneStatus(request_id="r-1", model="support", state=State.ACCEPTED, at=now())
        if request_id == "r-1" and model in {None, "support"}
        else None
    )


# ── POST /requests ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON ; charset=utf-8"])
def test_a_body_in_json_is_taken(topic: Topic, content_type: str) -> None:
    assert submit_request(b'{"model": "support"}', content_type, "user-7", topic.publish).status == 202


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_body_of_another_content_type_is_refused(topic: Topic, content_type: str) -> None:
    code, content = plain(submit_request(b'{"model": "support"}', content_type, "user-7", topic.publish))
    assert (code, topic.requests) == (415, [])
    assert content["errors"] == [f"content-type: should be application/json, got {content_type!r}"]


def test_a_request_is_published_under_the_callers_name(topic: Topic) -> None:
    body = {"request_id": "r-1", "model": "support", "training": {"epochs": 5}, "data": {"folders": ["handbook"]}}
    assert submit(topic, body) == (202, {"request_id": "r-1", "model": "support"})
    [request] = topic.requests
    assert (request.requested_by, request.origin, request.training.epochs) == ("user-7", "api", 5)


def test_a_long_caller_name_is_truncated(topic: Topic) -> None:
    assert submit(topic, {"model": "support"}, caller="x" * 300)[0] == 202
    assert topic.requests[0].requested_by == "x" * 256


def test_a_request_without_an_id_gets_one(topic: Topic) -> None:
    ids = {submit(topic, {"model": "support"})[1]["request_id"] for _ in range(3)}
    assert {request.request_id for request in topic.requests} == ids
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: should be JSON"),
        (b"{", "body: should be JSON"),
        (b"\xff", "body: should be JSON"),
        (b"[" * 100_000, "body: should be JSON"),
        ([], "body: should be a JSON object"),
        ({"model": "Not A Name"}, "model"),
        ({"model": "support", "request_id": "../x"}, "request_id"),
        ({"model": "support", "request_id": "auto-0123"}, "request_id: ids that begin with auto- or schedule-"),
        ({"model": "support", "request_id": "schedule-support-20260301T040000"}, "request_id: ids that begin with"),
        ({"model": "support", "trainng": {}}, "body: unknown fields: trainng"),
        ({"model": "support", "requested_by": "someone else"}, "body: unknown fields: requested_by"),
        ({"model": "support", "training": {"epochs": 0}}, "training.epochs"),
        ({"model": "support", "training": {"epoks": 1}}, "training.epoks"),
        (b'{"model": "support", "weights": {"temperature": NaN}}', "weights.temperature"),
        ({}, "model"),
    ],
)
def test_an_invalid_body_is_refused_by_the_name_of_the_field(topic: Topic, body: object, words: str) -> None:
    code, content = submit(topic, body)
    assert code == 400
    assert any(words in error for error in content["errors"]), content
    assert not topic.requests


def test_the_size_of_a_body_is_bounded(topic: Topic) -> None:
    code, content = submit(topic, b" " * (MAX_BODY_BYTES + 1))
    assert (code, content["errors"]) == (413, [f"body: at most {MAX_BODY_BYTES} bytes"])
    assert submit(topic, b'{"model": "support"}'.ljust(MAX_BODY_BYTES))[0] == 202


def test_an_event_over_the_publishers_bound_is_refused(topic: Topic) -> None:
    topic.error = OutOfBoundsError("event: 2000 bytes, at most 1024")
    code, content = submit(topic, {"model": "support"})
    assert code == 400
    assert "at most 1024" in content["errors"][0]


def test_a_possibly_published_request_can_be_sent_again_under_its_id(topic: Topic) -> None:
    topic.error = PublishError("fine-tune-requests", "no answer")
    code, content = submit(topic, {"model": "support"})
    assert code == 503
    topic.error = None
    assert submit(topic, {"model": "support", "request_id": content["request_id"]})[0] == 202
    [request] = topic.requests
    assert request.request_id == content["request_id"]


# ── GET /requests/{id} ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_status_is_answered_as_it_is_on_the_topic() -> None:
    status = FineTuneStatus(request_id="r-1", model="support", state=State.FAILED, at=now(), reasons=("no luck",))
    code, content = plain(request_status("r-1", None, lambda *_: status))
    assert code == 200
    assert FineTuneStatus.model_validate_json(json.dumps(content)) == status


@pytest.mark.parametrize(
    ("request_id", "code", "words"),
    [("r-2", 404, "'r-2'"), ("../jobs/x", 400, "request_id: "), ("", 400, "request_id: "), ("x" * 129, 400, "128")],
)
def test_an_unknown_or_invalid_id_is_refused(request_id: str, code: int, words: str) -> None:
    found, content = plain(request_status(request_id, None, newest_status))
    assert found == code
    assert words in content["errors"][0]


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("support", 200, ""),
        ("sales", 404, "'r-1' of model 'sales'"),
        ("Not A Name", 400, "model: "),
        ("", 400, "model: "),
    ],
)
def test_a_status_is_that_of_the_named_model(model: str, code: int, words: str) -> None:
    found, content = plain(request_status("r-1", model, newest_status))
    assert found == code
    assert words in str(content.get("errors"))


def test_an_unavailable_store_is_a_503() -> None:
    def fail(*_: object) -> FineTuneStatus | None:
        raise ObjectStoreError("https://s3.example")

    assert plain(request_status("r-1", None, fail))[0] == 503


def test_an_unreadable_status_is_a_server_error() -> None:
    with pytest.raises(ValidationError):
        request_status("r-1", None, lambda *_: FineTuneStatus.model_validate_json("{}"))


def test_a_caller_whose_name_is_not_utf8_is_served(topic: Topic) -> None:
    name = b"\xffada".decode(errors="surrogateescape")
    assert submit(topic, {"model": "support"}, caller=name)[0] == 202
    assert topic.requests[0].requested_by == "?ada"
