"""The API's Lambda front: payloads, tokens and where it publishes and reads. What it answers: tests/unit/api."""

import base64
import json
from typing import Any

import pytest

from foldtune.errors import ObjectStoreError, PublishError
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.kafka import BOOTSTRAP_SECONDS
from foldtune.status_order import StatusRecord
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic
from infra.aws.handlers import api
from infra.aws.status_store import StatusStore
from tests.lambda_payloads import Context, http_payload

from .conftest import Published

POST, GET = "POST /requests", "GET /requests/{id}"
CLAIMS = {"sub": "user-7", "iss": "https://issuer.example"}


def call(route: str, body: object = None, **more: Any) -> tuple[int, dict[str, Any]]:
    text = body if isinstance(body, str) or body is None else json.dumps(body)
    answer = api(http_payload(route, text, **{"claims": CLAIMS, **more}), Context(28))
    assert answer["headers"] == {"content-type": "application/json", "cache-control": "no-store"}
    return answer["statusCode"], json.loads(answer["body"])


def requests(published: Published) -> list[FineTuneRequested]:
    return published.on(Topic.FINE_TUNE_REQUESTS)


@pytest.mark.parametrize(
    ("claims", "caller"), [(CLAIMS, "user-7"), ({"client_id": "agent"}, "agent"), ({"iss": "x"}, "unknown")]
)
def test_a_request_is_published_under_the_subject_of_the_token(
    published: Published, claims: dict[str, Any], caller: str
) -> None:
    assert call(POST, {"request_id": "r-1", "model": "support"}, claims=claims)[0] == 202
    [request] = requests(published)
    assert (request.request_id, request.requested_by) == ("r-1", caller)
    assert published.messages[0][2]["key"] == "support"


def test_a_body_may_be_encoded(published: Published) -> None:
    body = base64.b64encode(b'{"model": "support"}').decode()
    code, _ = call(POST, body, isBase64Encoded=True)
    assert code == 202


@pytest.mark.parametrize("body", [None, "{", {"model": "Not A Name"}])
def test_an_invalid_body_connects_to_nothing(published: Published, body: object) -> None:
    assert call(POST, body)[0] == 400
    assert not published.connected


def test_a_call_without_a_verified_token_is_refused(published: Published) -> None:
    code, _ = call(POST, {"model": "support"}, claims=None)
    assert code == 401
    assert call(GET, pathParameters={"id": "r-1"}, claims=None)[0] == 401
    assert not published.connected


def test_unresponsive_brokers_are_a_503_before_the_function_times_out(published: Published) -> None:
    published.broken = PublishError("x-fine-tune-requests", "no answer")
    assert call(POST, {"model": "support"})[0] == 503
    assert published.delivery_seconds + BOOTSTRAP_SECONDS < 28


def test_a_status_is_read_from_the_store(store: MemoryObjectStore) -> None:
    status = FineTuneStatus(request_id="r-1", model="support", state=State.FAILED, at=now(), reasons=("no luck",))
    StatusStore(store).update(StatusRecord(partition=0, offset=1, status=status))
    code, answer = call(GET, pathParameters={"id": "r-1"})
    assert code == 200
    assert FineTuneStatus.model_validate_json(json.dumps(answer)) == status
    assert call(GET, pathParameters={"id": "r-1"}, queryStringParameters={"model": "support"}) == (200, answer)
    assert call(GET, pathParameters={"id": "r-1"}, queryStringParameters={"model": "sales"})[0] == 404


@pytest.mark.parametrize(
    ("parameters", "code"), [({"id": "r-2"}, 404), ({"id": "../jobs/x"}, 400), ({}, 400), (None, 400)]
)
def test_an_unknown_invalid_or_missing_id(store: MemoryObjectStore, parameters: object, code: int) -> None:
    assert call(GET, pathParameters=parameters)[0] == code


def test_an_unavailable_store_is_a_503(store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> tuple[bytes, str]:
        raise ObjectStoreError("https://s3.example")

    monkeypatch.setattr(store, "get_with_etag", fail)
    assert call(GET, pathParameters={"id": "r-1"})[0] == 503


def test_an_unknown_route_is_refused() -> None:
    assert call("DELETE /requests/{id}") == (404, {"errors": ["no such route: DELETE /requests/{id}"]})
