"""The body of a request, without a server: both fronts read it so."""

import json
from typing import Any

import pytest

from api.access import Access, Caller
from api.problems import ProblemError
from api.schemas import ErasureBody
from api.submission import MAX_BODY_BYTES, RequestBody, parse_body, request_of
from foldtune.events import FineTuneRequested
from foldtune.settings import Grant, Role

ACCESS = Access(Caller("user-7"), (Grant(roles=(Role.REQUESTER,)),))


def submitted(body: object, content_type: str = "application/json") -> FineTuneRequested:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request_of(parse_body(RequestBody, content, content_type), ACCESS)


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON ; charset=utf-8"])
def test_a_body_in_json_is_taken(content_type: str) -> None:
    assert submitted({"model": "support"}, content_type).model == "support"


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_body_of_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(ProblemError) as refused:
        submitted({"model": "support"}, content_type)
    assert refused.value.status == 415
    assert refused.value.errors == (f"content-type: should be application/json, got {content_type!r}",)


def test_a_request_is_in_the_callers_name() -> None:
    body = {"request_id": "r-1", "model": "support", "training": {"epochs": 5}, "data": {"folders": ["handbook"]}}
    request = submitted(body)
    assert (request.request_id, request.requested_by, request.origin) == ("r-1", "user-7", "api")
    assert (request.training.epochs, request.data.folders) == (5, ("handbook",))


def test_a_request_without_an_id_gets_one() -> None:
    assert len({submitted({"model": "support"}).request_id for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: should be JSON"),
        (b"{", "body: should be JSON"),
        (b"\xff", "body: should be JSON"),
        (b"[" * 100_000, "body: should be JSON"),
        ([], "body: should be a JSON object"),
        ({"model": "Not A Name"}, "model: "),
        ({"model": "support", "request_id": "../x"}, "request_id: "),
        ({"model": "support", "request_id": "auto-0123"}, "request_id: ids that begin with auto- or schedule-"),
        ({"model": "support", "request_id": "schedule-support-20260301T040000"}, "request_id: ids that begin with"),
        ({"model": "support", "trainng": {}}, "body: unknown fields: trainng"),
        ({"model": "support", "requested_by": "someone else"}, "body: unknown fields: requested_by"),
        ({"model": "support", "training": {"epochs": 0}}, "training.epochs: "),
        ({"model": "support", "training": {"epoks": 1}}, "training.epoks: "),
        (b'{"model": "support", "weights": {"temperature": NaN}}', "weights.temperature"),
        ({}, "model: "),
    ],
)
def test_an_invalid_body_is_refused_by_the_name_of_the_field(body: object, words: str) -> None:
    with pytest.raises(ProblemError) as refused:
        submitted(body)
    assert refused.value.status == 400
    assert any(words in error for error in refused.value.errors), refused.value.errors


def test_a_problem_names_each_field_with_its_bound() -> None:
    with pytest.raises(ProblemError) as refused:
        submitted({"model": "support", "training": {"epochs": 101}, "weights": {"minimum": 2}})
    document: dict[str, Any] = refused.value.document()
    assert {field["name"]: field["reason"] for field in document["fields"]} == {
        "training.epochs": "Input should be less than or equal to 100",
        "weights.minimum": "Input should be less than or equal to 1",
    }


def test_the_size_of_a_body_is_bounded() -> None:
    with pytest.raises(ProblemError, match=f"body: at most {MAX_BODY_BYTES} bytes") as refused:
        submitted(b" " * (MAX_BODY_BYTES + 1))
    assert refused.value.status == 413
    assert submitted(b'{"model": "support"}'.ljust(MAX_BODY_BYTES)).model == "support"


@pytest.mark.parametrize("field", ["start", "end"])
@pytest.mark.parametrize("written", [1700000000, "1700000000", "20260131", " 0 "])
def test_a_time_as_a_number_is_refused_and_not_taken_as_seconds_since_1970(field: str, written: object) -> None:
    assert submitted({"model": "support", "data": {field: "2026-01-31T12:00:00+02:00"}})
    with pytest.raises(ProblemError) as refused:
        submitted({"model": "support", "data": {field: written}})
    (error,) = refused.value.errors
    assert error.startswith(f"data.{field}: should be written as in 2026-01-31"), error


def test_an_erasure_is_not_of_what_was_before_1970() -> None:
    body = {"subject": "user", "subject_id": "u", "before": "20261127"}
    with pytest.raises(ProblemError) as refused:
        parse_body(ErasureBody, json.dumps(body).encode(), "application/json")
    assert refused.value.errors[0].startswith("before: should be written as in")
    body["before"] = "2026-11-27T00:00:00Z"
    assert parse_body(ErasureBody, json.dumps(body).encode(), "application/json").before
