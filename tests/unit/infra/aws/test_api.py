"""The API's Lambda front: payloads, tokens and where it publishes and reads. What it answers: tests/unit/api."""

import base64
import json
from typing import Any

import pytest

from foldtune.errors import ObjectStoreError, PublishError
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.kafka import BOOTSTRAP_SECONDS
from foldtune.settings import load_settings
from foldtune.status_order import StatusRecord
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic
from infra.aws.handlers import api
from infra.aws.status_store import StatusStore
from tests.lambda_payloads import Context, http_payload

from .conftest import Published

POST, GET = "POST /requests", "GET /requests/{id}"
CLAIMS = {"sub": "user-7", "iss": "https://issuer.example", "roles": "[viewer requester]"}


def call(route: str, body: object = None, **more: Any) -> tuple[int, dict[str, Any]]:
    text = body if isinstance(body, str) or body is None else json.dumps(body)
    answer = api(http_payload(route, text, **{"claims": CLAIMS, **more}), Context(28))
    kind = "application/json" if answer["statusCode"] < 400 else "application/problem+json"
    assert (answer["headers"]["content-type"], answer["headers"]["cache-control"]) == (kind, "no-store")
    return answer["statusCode"], json.loads(answer["body"])


def requests(published: Published) -> list[FineTuneRequested]:
    return published.on(Topic.FINE_TUNE_REQUESTS)


@pytest.mark.parametrize(
    ("claims", "caller"), [({"sub": "user-7"}, "user-7"), ({"client_id": "agent"}, "agent"), ({"iss": "x"}, "unknown")]
)
def test_a_request_is_published_under_the_subject_of_the_token(
    published: Published, claims: dict[str, Any], caller: str
) -> None:
    assert call(POST, {"request_id": "r-1", "model": "support"}, claims=claims | {"roles": "requester"})[0] == 202
    [request] = requests(published)
    assert (request.request_id, request.requested_by) == ("r-1", caller)
    assert [message[2]["key"] for message in published.messages] == ["support/r-1", "support"]
    [entry] = published.on(Topic.AUDIT)
    assert (entry.who, entry.action, entry.target) == (caller, "request.create", "support/r-1")


@pytest.mark.parametrize("roles", [None, "[]", "operator", "unknown", "[viewer privacy]"])
def test_a_call_without_the_routes_role_is_refused(published: Published, roles: str | None) -> None:
    claims = {"sub": "user-7"} | ({} if roles is None else {"roles": roles})
    code, answer = call(POST, {"model": "support"}, claims=claims)
    assert (code, answer["errors"]) == (403, ["needs one of the roles requester"])
    assert not published.connected


def test_grants_limit_the_function_as_they_do_the_server(
    published: Published, store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    grants = [{"value": "search-team", "roles": ["requester", "viewer"], "models": ["support"]}]
    monkeypatch.setenv("FOLDTUNE_API__GRANTS", json.dumps(grants))
    load_settings.cache_clear()
    claims = {"sub": "user-7", "roles": "[search-team]"}
    for model, code in (("support", 202), ("sales", 403)):
        assert call(POST, {"model": model}, claims=claims)[0] == code
    status = FineTuneStatus(request_id="r-1", model="sales", state=State.ACCEPTED, at=now())
    StatusStore(store).update(StatusRecord(partition=0, offset=1, status=status))
    assert call(GET, pathParameters={"id": "r-1"}, claims=claims)[0] == 404


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
    code, answer = call("DELETE /requests/{id}")
    assert (code, answer["errors"]) == (404, ["no such route: DELETE /requests/{id}"])
