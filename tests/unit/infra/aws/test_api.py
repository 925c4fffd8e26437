"""The API's Lambda front: payloads, tokens and where it publishes and reads. What it answers: tests/unit/api."""

import base64
import json
import re
from contextlib import AbstractContextManager
from typing import Any

import pytest

from api.access import RULES
from api.problems import SECURITY_HEADERS
from foldtune.errors import ObjectStoreError, PublishError
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.kafka import BOOTSTRAP_SECONDS
from foldtune.object_keys import model_prefix, status_key
from foldtune.settings import Settings, load_settings
from foldtune.status_order import StatusRecord
from foldtune.testing import MemoryObjectStore
from foldtune.topics import Topic
from infra.aws.handlers import api
from infra.aws.http_api import HttpApi
from infra.aws.status_store import StatusStore
from tests.lambda_payloads import Context, http_payload
from tests.published_version import METRICS, publish_version

from .conftest import Published

POST, GET = "POST /requests", "GET /requests/{id}"
CLAIMS = {"sub": "user-7", "iss": "https://issuer.example", "roles": "[viewer requester]"}


def answer_of(route: str, body: object = None, **more: Any) -> dict[str, Any]:
    text = body if isinstance(body, str) or body is None else json.dumps(body)
    return api(http_payload(route, text, **{"claims": CLAIMS, **more}), Context(28))


def call(route: str, body: object = None, **more: Any) -> tuple[int, dict[str, Any]]:
    answer = answer_of(route, body, **more)
    kind = "application/json" if answer["statusCode"] < 400 else "application/problem+json"
    assert answer["headers"].items() >= (SECURITY_HEADERS | {"content-type": kind}).items()
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


def test_an_id_stands_for_one_request_once_it_has_a_status(published: Published, store: MemoryObjectStore) -> None:
    body = {"request_id": "r-1", "model": "support", "training": {"epochs": 2}}
    assert call(POST, body)[0] == 202
    [request] = requests(published)
    status = FineTuneStatus(
        request_id="r-1", model="support", state=State.ACCEPTED, at=now(), asked_sha256=request.digest
    )
    StatusStore(store).update(StatusRecord(partition=0, offset=1, status=status))
    # The default of the seed, written out, is the same.
    assert call(POST, body | {"seed": 0})[0] == 202
    code, answer = call(POST, body | {"seed": 1})
    assert (code, answer["fields"][0]["name"]) == (409, "request_id")
    assert len(requests(published)) == 1
    assert call(POST, body | {"model": "sales", "seed": 1})[0] == 202
    # A status of an earlier release does not say what was asked for.
    other = status.model_copy(update={"request_id": "r-2", "asked_sha256": None})
    StatusStore(store).update(StatusRecord(partition=0, offset=2, status=other))
    assert call(POST, body | {"request_id": "r-2"})[0] == 202
    assert len(requests(published)) == 3


def test_a_body_may_be_encoded(published: Published) -> None:
    body = base64.b64encode(b'{"model": "support"}').decode()
    code, _ = call(POST, body, isBase64Encoded=True)
    assert code == 202


@pytest.mark.parametrize("body", [None, "{", {"model": "Not A Name"}])
def test_an_invalid_body_connects_to_nothing(published: Published, body: object) -> None:
    assert call(POST, body)[0] == 400
    assert not published.connected


@pytest.mark.parametrize("body", ["a", "é"])
def test_a_body_that_is_not_what_the_gateway_says_is_refused(published: Published, body: str) -> None:
    code, answer = call(POST, body, isBase64Encoded=True)
    assert (code, answer["errors"]) == (400, ["body: should be text, or bytes in base64"])
    assert call(POST, "\ud800")[0] == 400
    assert not published.connected


def test_a_status_that_cannot_be_read_is_a_problem_document(store: MemoryObjectStore) -> None:
    store.put(status_key("r-1"), b"{")
    code, answer = call(GET, pathParameters={"id": "r-1"})
    assert (code, answer["status"]) == (500, 500)


def test_an_answer_that_is_too_large_for_a_function_names_the_way(
    store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.aws.http_api._MAX_ANSWER", 5)
    publish_version(store, "support", "000001")
    name = {"model": "support", "version": "000001"}
    code, answer = call("GET /models/{model}/versions/{version}/card", pathParameters=name)
    assert (code, "by its link" in answer["detail"]) == (409, True)


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


# ── Following, cancelling ────────────────────────────────────────────────────────────────────────────────────────────


def put_status(store: MemoryObjectStore, state: State, offset: int = 1, **more: Any) -> None:
    status = FineTuneStatus(request_id="r-1", model="support", state=state, at=now(), **more)
    StatusStore(store).update(StatusRecord(partition=0, offset=offset, status=status))


FOLLOW = "GET /models/{model}/requests/{id}"
PLACE = {"model": "support", "id": "r-1"}


def test_a_request_is_followed_by_waiting_for_another_status(
    store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_status(store, State.RUNNING)
    first = answer_of(FOLLOW, pathParameters=PLACE)
    headers = {"if-none-match": f'"other", W/{first["headers"]["etag"]}'}
    unchanged = answer_of(FOLLOW, pathParameters=PLACE, headers=headers)
    assert (unchanged["statusCode"], unchanged["body"]) == (304, "")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            put_status(store, State.FAILED, offset=2)

    monkeypatch.setattr("infra.aws.http_api.time.sleep", sleep)
    waited = answer_of(FOLLOW, pathParameters=PLACE, headers=headers, queryStringParameters={"wait": "20"})
    assert json.loads(waited["body"])["state"] == "failed"
    assert waited["headers"]["etag"] != first["headers"]["etag"]
    assert slept == [1.0] * 3


@pytest.mark.parametrize("wait", ["21", "-1", "x", ""])
def test_a_wait_has_its_bounds(store: MemoryObjectStore, wait: str) -> None:
    put_status(store, State.RUNNING)
    code, answer = call(FOLLOW, pathParameters=PLACE, queryStringParameters={"wait": wait})
    assert (code, answer["fields"][0]["name"]) == (400, "wait")


def test_a_grant_for_folders_cancels_nothing_here(
    store: MemoryObjectStore, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    grants = [{"value": "of-handbook", "roles": ["requester"], "folders": ["handbook"]}]
    monkeypatch.setenv("FOLDTUNE_API__GRANTS", json.dumps(grants))
    load_settings.cache_clear()
    status = FineTuneStatus(request_id="r-1", model="support", state=State.RUNNING, at=now())
    StatusStore(store).update(StatusRecord(partition=0, offset=1, status=status))
    name, claims = {"model": "support", "id": "r-1"}, {"sub": "user-7", "roles": "[of-handbook]"}
    assert call("POST /models/{model}/requests/{id}/cancel", pathParameters=name, claims=claims)[0] == 403
    assert not published.connected


def test_a_request_is_cancelled_unless_it_has_ended(store: MemoryObjectStore, published: Published) -> None:
    route = "POST /models/{model}/requests/{id}/cancel"
    assert call(route, pathParameters=PLACE)[0] == 404
    put_status(store, State.RUNNING)
    assert call(route, pathParameters=PLACE) == (202, {"request_id": "r-1", "model": "support"})
    [event] = published.on(Topic.FINE_TUNE_REQUESTS)
    assert (event.type, event.request_id, event.requested_by) == ("fine_tune_cancelled", "r-1", "user-7")
    [entry] = published.on(Topic.AUDIT)
    assert (entry.action, entry.before) == ("request.cancel", {"state": "running"})
    put_status(store, State.COMPLETED, offset=2)
    assert call(route, pathParameters=PLACE)[0] == 409


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def unconnected() -> AbstractContextManager[Any]:
    raise AssertionError


ANSWERED = HttpApi(Settings(), MemoryObjectStore(), unconnected).routes
VERSION = "GET /models/{model}/versions/{version}"


@pytest.fixture
def versions(store: MemoryObjectStore) -> list[str]:
    """The names of three published versions of ``support``, the newest first; a fourth was never published."""
    names = ["000003", "000002", "000001"]
    for name in names:
        publish_version(store, "support", name)
    store.put(f"{model_prefix('support', '000004')}/runs/a/README.md", b"not published")
    return names


def test_versions_are_listed_by_pages(versions: list[str]) -> None:
    route, place = "GET /models/{model}/versions", {"model": "support"}
    code, answer = call(route, pathParameters=place, queryStringParameters={"limit": "2"})
    assert (code, answer["items"]) == (200, [{"version": name} for name in versions[:2]])
    more = {"limit": "2", "cursor": answer["next"]}
    assert call(route, pathParameters=place, queryStringParameters=more)[1] == {
        "items": [{"version": versions[2]}],
        "next": None,
    }
    assert call(route, pathParameters={"model": "sales"})[0] == 404
    assert call(route, pathParameters=place, queryStringParameters={"limit": "0"})[0] == 400


def test_a_version_its_card_metrics_and_files_are_read(versions: list[str], store: MemoryObjectStore) -> None:
    place = {"model": "support", "version": "000002"}
    code, ready = call(VERSION, pathParameters=place)
    assert (code, ready["version"], ready["model"]) == (200, "000002", "support")
    card = answer_of(f"{VERSION}/card", pathParameters=place)
    assert (card["body"], card["headers"]["content-type"]) == ("# Card", "text/markdown; charset=utf-8")
    assert call(f"{VERSION}/metrics", pathParameters=place) == (200, METRICS)
    _, files = call(f"{VERSION}/files", pathParameters=place)
    assert {file["path"] for file in files["items"]} == {"README.md", "metrics.json", "1_Pooling/config.json"}
    _, link = call(f"{VERSION}/files/{{path+}}", pathParameters=place | {"path": "1_Pooling/config.json"})
    assert "1_Pooling/config.json" in link["url"]
    for path in ("evaluation.parquet", "../000001/README.md", ""):
        assert call(f"{VERSION}/files/{{path+}}", pathParameters=place | {"path": path})[0] == 404


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ({"model": "support", "version": "000009"}, 404),
        ({"model": "support", "version": "../x"}, 400),
        ({"model": "../x", "version": "000001"}, 400),
        ({"version": "000001"}, 403),
    ],
)
def test_other_versions_are_refused(place: dict[str, str], code: int, versions: list[str]) -> None:
    claims = CLAIMS if "model" in place else {"sub": "user-7", "roles": "[limited]"}
    assert call(f"{VERSION}/files", pathParameters=place, claims=claims)[0] == code


@pytest.mark.parametrize("route", sorted(set(RULES) - ANSWERED))
def test_what_is_to_be_had_in_a_cluster_only_is_said(route: str) -> None:
    method, _, path = route.partition(" ")
    filled = re.sub(r"\{\w+\}", "x", path)
    http = {"http": {"method": method, "path": filled}, "authorizer": {"jwt": {"claims": CLAIMS}}}
    code, answer = call("$default", requestContext=http)
    assert (code, answer["errors"]) == (
        501,
        [f"{route} needs a view of the topics: it is to be had from `foldtune api` in a cluster only"],
    )
