"""What `api` answers, and what it publishes."""

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError

from api.requests import MAX_BODY_BYTES
from foldtune.errors import ObjectStoreError, PublishError
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.kafka import BOOTSTRAP_SECONDS
from foldtune.object_keys import key_segment
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic
from infra.aws.handlers import api
from infra.aws.status_store import StatusObjects
from tests.lambda_payloads import Context, http_payload

from .conftest import Published

ASK, TELL = "POST /requests", "GET /requests/{id}"
CLAIMS = {"sub": "user-7", "iss": "https://issuer.example"}


def call(route: str, body: object = None, **more: Any) -> tuple[int, dict[str, Any]]:
    text = body if isinstance(body, str) or body is None else json.dumps(body)
    answer = api(http_payload(route, text, **{"claims": CLAIMS, **more}), Context(28))
    assert answer["headers"]["content-type"] == "application/json"
    return answer["statusCode"], json.loads(answer["body"])


def requests(published: Published) -> list[FineTuneRequested]:
    return published.on(Topic.FINE_TUNE_REQUESTS)


def test_a_request_is_published_as_the_caller_s(published: Published) -> None:
    asked = {"request_id": "r-1", "model": "support", "training": {"epochs": 5}, "data": {"folders": ["handbook"]}}
    assert call(ASK, asked) == (202, {"request_id": "r-1", "model": "support"})
    [request] = requests(published)
    assert (request.requested_by, request.origin, request.training.epochs) == ("user-7", "api", 5)
    assert published.messages[0][2]["key"] == "support"


def test_a_request_without_a_name_gets_one(published: Published) -> None:
    names = {call(ASK, {"model": "support"})[1]["request_id"] for _ in range(3)}
    assert {request.request_id for request in requests(published)} == names
    assert len(names) == 3


def test_a_body_may_be_encoded(published: Published) -> None:
    body = base64.b64encode(b'{"model": "support"}').decode()
    code, _ = call(ASK, body, isBase64Encoded=True)
    assert code == 202


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (None, "body: should be JSON"),
        ("{", "body: should be JSON"),
        ("[" * 100_000, "body: should be JSON"),
        ([], "body: should be a JSON object"),
        ({"model": "Not A Name"}, "model"),
        ({"model": "support", "request_id": "../x"}, "request_id"),
        ({"model": "support", "trainng": {}}, "No fields of a request: trainng"),
        ({"model": "support", "requested_by": "someone else"}, "No fields of a request: requested_by"),
        ({"model": "support", "training": {"epochs": 0}}, "training.epochs"),
        ({"model": "support", "training": {"epoks": 1}}, "training.epoks"),
        ('{"model": "support", "weights": {"temperature": NaN}}', "weights.temperature"),
        ({}, "model"),
    ],
)
def test_what_is_no_request_is_refused_by_the_name_of_the_field(published: Published, body: object, named: str) -> None:
    code, answer = call(ASK, body)
    assert code == 400
    assert any(named in error for error in answer["errors"]), answer
    assert not published.connected


def test_a_body_has_a_bound(published: Published) -> None:
    code, answer = call(ASK, "x" * (MAX_BODY_BYTES + 1))
    assert (code, answer["errors"]) == (413, [f"body: {MAX_BODY_BYTES + 1} bytes, at most {MAX_BODY_BYTES}"])


def test_without_a_checked_token_nothing_is_done(published: Published) -> None:
    code, _ = call(ASK, {"model": "support"}, claims=None)
    assert code == 401
    assert call(TELL, pathParameters={"id": "r-1"}, claims=None)[0] == 401
    assert not published.connected


def test_brokers_that_do_not_answer_are_said_so(published: Published) -> None:
    published.broken = PublishError("x-fine-tune-requests", "no answer")
    code, answer = call(ASK, {"model": "support"})
    assert code == 503
    # Said before the function is ended.
    assert published.delivery_seconds + BOOTSTRAP_SECONDS < 28
    # It may have been taken all the same: it can be sent again under the name that it was given.
    published.broken = None
    assert call(ASK, {"model": "support", "request_id": answer["request_id"]})[0] == 202
    [request] = requests(published)
    assert request.request_id == answer["request_id"]


def test_a_status_is_told_as_it_is_on_the_topic(store: MemoryObjectStore) -> None:
    status = FineTuneStatus(request_id="r-1", model="support", state=State.FAILED, at=now(), reasons=("no luck",))
    StatusObjects(store).keep(status, 0, 1)
    code, answer = call(TELL, pathParameters={"id": "r-1"})
    assert code == 200
    assert FineTuneStatus.model_validate_json(json.dumps(answer)) == status


@pytest.mark.parametrize(
    ("parameters", "code"), [({"id": "r-2"}, 404), ({"id": "../jobs/x"}, 400), ({}, 400), (None, 400)]
)
def test_what_is_not_known_or_no_name(store: MemoryObjectStore, parameters: object, code: int) -> None:
    assert call(TELL, pathParameters=parameters)[0] == code


def test_a_store_that_does_not_answer_is_said_so(store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> tuple[bytes, str]:
        raise ObjectStoreError("https://s3.example")

    monkeypatch.setattr(store, "get_with_etag", fail)
    assert call(TELL, pathParameters={"id": "r-1"})[0] == 503


def test_a_status_that_cannot_be_read_is_not_the_caller_s_fault(store: MemoryObjectStore) -> None:
    store.put("statuses/" + key_segment("r-1") + ".json", b"{}")
    with pytest.raises(ValidationError):
        call(TELL, pathParameters={"id": "r-1"})


def test_another_route_is_not_there() -> None:
    assert call("DELETE /requests/{id}")[0] == 404
