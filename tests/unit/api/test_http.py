"""What holds for every call: hosts, names, headers, time, metrics, errors; and what the API says of itself."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from api import http
from api.context import RateLimit, Services
from api.problems import SECURITY_HEADERS
from api.server import serve
from api.sign_in import NoSignIn
from api.view.follower import TopicFollower
from api.view.system import SystemView
from foldtune.errors import InvalidSettingsError
from foldtune.settings import ApiSettings, Settings
from foldtune.topics import Topic

from .conftest import bearer, client_of, status_record


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "10.1.2.3:8080", "[::1]:8080", "api.example.com", "Bind:80"]
)
def test_the_api_answers_under_addresses_and_the_names_that_it_is_given(services: Services, host: str) -> None:
    client = client_of(services, host="bind")
    assert client.get("/requests/r-1", headers={"Host": host}).status_code == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", "api.example.com.evil.example", "127.0.0.1.evil.example:8080", "", "a:b:c", "api.example.com@x"],
)
def test_the_api_refuses_calls_under_any_other_name(client: TestClient, host: str) -> None:
    for path in ("/requests/r-1", "/health", "/other"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert answer.json()["errors"] == [f"host: {host!r} is none of this API's names (api.hosts)"]
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        (None, 202),
        ("http://localhost", 202),
        ("https://evil.example", 403),
        ("http://localhost:1", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
def test_pages_of_other_origins_change_nothing(
    client: TestClient, view: SystemView, origin: str | None, code: int
) -> None:
    view.requests.apply(status_record())
    headers = {} if origin is None else {"Origin": origin}
    assert client.post("/models/support/requests/r-1/cancel", headers=headers).status_code == code


def test_other_routes_and_methods_are_problems(client: TestClient) -> None:
    answer = client.get("/nothing")
    assert (answer.status_code, answer.json()["errors"]) == (404, ["no such route: GET /nothing"])
    answer = client.delete("/requests/r-1")
    assert (answer.status_code, answer.json()["errors"]) == (405, ["no such route: DELETE /requests/r-1"])
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("path", ["/health", "/requests/r-1", "/requests", "/nothing"])
def test_every_answer_has_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    for name, value in SECURITY_HEADERS.items():
        assert headers[name] == value
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


@pytest.mark.parametrize(("given", "kept"), [("abc-1", True), ("a b", False), ("x" * 65, False), ("", False)])
def test_a_call_keeps_its_name_or_gets_one(client: TestClient, given: str, kept: bool) -> None:
    name = client.get("/requests", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert (name == given) == kept
    assert name


def test_other_origins_are_allowed_only_if_they_are_named(services: Services, tokens_file: Path) -> None:
    origin = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    assert "access-control-allow-origin" not in client_of(services).options("/requests", headers=origin).headers
    settings = Settings(api=ApiSettings(tokens_file=tokens_file, cors_origins=("https://app.example",)))
    allowed = client_of(replace(services, settings=settings)).options("/requests", headers=origin).headers
    assert allowed["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in allowed


def test_a_call_is_bounded_in_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIME_LIMIT_SECONDS", 0.05)

    async def hang(*_: object) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr("api.publishing.Auditor.write", hang)
    answer = client.post("/requests", json={"model": "support"})
    assert (answer.status_code, answer.json()["errors"]) == (503, ["not available at the moment; retry later"])


def test_a_defect_is_told_without_its_text(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("api.publishing.Auditor.write", fail)
    with capture_logs() as lines:
        answer = client.post("/requests", json={"model": "support"})
    assert answer.status_code == 500
    assert "unhandled error" in [line["event"] for line in lines]
    assert "secret" not in answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_caller_is_limited_without_the_others(services: Services) -> None:
    client = client_of(replace(services, rate_limit=RateLimit(3)))
    codes = [client.get("/requests", headers=bearer("viewer")).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    assert client.get("/requests", headers=bearer("operator")).status_code == 200


def test_latency_is_measured_by_route_and_not_by_path(client: TestClient, view: SystemView) -> None:
    def count(route: str, status: str) -> float:
        labels = {"method": "GET", "route": route, "status": status}
        return REGISTRY.get_sample_value("foldtune_api_request_seconds_count", labels) or 0

    view.requests.apply(status_record())
    before = count("/requests/{id}", "200"), count("none", "404")
    client.get("/requests/r-1")
    client.get("/whatever/anybody/writes")
    assert (count("/requests/{id}", "200"), count("none", "404")) == (before[0] + 1, before[1] + 1)


def test_the_api_is_neither_healthy_nor_ready_before_its_topics_are_read(client: TestClient) -> None:
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503


@pytest.fixture
def followed(view: SystemView, monkeypatch: pytest.MonkeyPatch) -> SystemView:
    """A view that has begun to follow its topics, of which nothing was read yet."""

    async def nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(SystemView, "unhealthy", None)
    monkeypatch.setattr("api.view.system.partitions_of", lambda _, topics: dict.fromkeys(topics, 1))
    monkeypatch.setattr(TopicFollower, "catch_up", nothing)
    monkeypatch.setattr(TopicFollower, "run", nothing)
    asyncio.run(view.start())
    return view


def test_the_api_is_not_ready_before_a_topic_is_read_or_while_it_lags(client: TestClient, followed: SystemView) -> None:
    def told() -> str:
        answer = client.get("/ready")
        assert answer.status_code == (200 if answer.text == "ok\n" else 503)
        return answer.text

    seen = set()
    for follower in followed._followers:
        follower._current_at = time.monotonic()
    for follower in followed._followers:
        follower._current_at = None
        assert told() == f"not read to their end yet: {follower.topics}\n"
        follower._current_at = time.monotonic() - 16
        assert told() == f"not read to their end for more than 15 s: {follower.topics}\n"
        follower._current_at = time.monotonic() - 14
        assert told() == "ok\n"
        seen |= set(follower._topics.values())
    # All but those that it only writes.
    assert seen == set(followed._partitions) - {Topic.ERASURES, Topic.PREVIEW_REQUESTS}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "api.example.com"])  # noqa: S104  refused
def test_without_sign_in_only_this_machine_can_reach_the_api(host: str) -> None:
    with pytest.raises(InvalidSettingsError, match=r"127\.0\.0\.1 only"):
        serve(Settings(), host, 8080)


def test_without_sign_in_every_call_is_answered(services: Services) -> None:
    assert client_of(replace(services, sign_in=NoSignIn())).get("/requests").status_code == 200


def test_the_description_has_every_route_with_its_roles(client: TestClient) -> None:
    answer = client.get("/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    assert document["paths"]["/requests"]["post"]["x-roles"] == ["requester"]
    assert "security" not in document["paths"]["/health"]["get"]
    for part in answer.text.split("#/components/schemas/")[1:]:
        assert part.partition('"')[0] in document["components"]["schemas"]
