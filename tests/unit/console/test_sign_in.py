"""Signing in with a token, what a session may, and what pages of others may not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.session_sign_in import sign_in_with_sessions
from console.app import sessions_of
from console.sign_in import relevant
from foldtune.errors import InvalidSettingsError
from foldtune.settings import ApiSettings, ClaimGrant, Role, Settings

from .conftest import browser_of


def test_a_page_leads_to_the_sign_in_and_from_there_back(browser: TestClient) -> None:
    answer = browser.get("/console/jobs?model=support", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/console/sign-in?to=/console/jobs%3Fmodel%3Dsupport",
    )
    page = browser.get(answer.headers["location"])
    assert 'value="/console/jobs?model=support"' in page.text
    signed = browser.post(
        "/console/sign-in", data={"token": "viewer", "to": "/console/jobs?model=support"}, follow_redirects=False
    )
    assert signed.headers["location"] == "/console/jobs?model=support"
    cookie = signed.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "viewer" not in cookie
    assert browser.get("/console/jobs", follow_redirects=False).status_code == 200


@pytest.mark.parametrize("to", ["//evil.example/", "https://evil.example", "/\\evil.example", "/models", ""])
def test_nobody_is_led_elsewhere(browser: TestClient, to: str) -> None:
    answer = browser.post("/console/sign-in", data={"token": "viewer", "to": to}, follow_redirects=False)
    assert answer.headers["location"] == "/console/"


def test_a_token_that_is_not_known_is_refused_beside_its_field(browser: TestClient) -> None:
    answer = browser.post("/console/sign-in", data={"token": "guessed"})
    assert answer.status_code == 401
    assert 'aria-invalid="true"' in answer.text
    assert "set-cookie" not in answer.headers


def test_a_session_ends_with_its_token_and_with_the_sign_out(services: Services, settings: Settings) -> None:
    browser = browser_of(services, settings, "viewer")
    assert browser.get("/console/jobs", follow_redirects=False).status_code == 200
    fewer = [{"name": "other", "sha256": hashlib.sha256(b"other").hexdigest(), "roles": ["viewer"]}]
    other = Path(str(settings.console.session_key_file)).with_name("tokens.json")
    other.write_text(json.dumps(fewer))
    kept = services.sign_in
    object.__setattr__(
        services, "sign_in", sign_in_with_sessions(ApiSettings(tokens_file=other), sessions_of(settings))
    )
    assert browser.get("/console/jobs", follow_redirects=False).status_code == 303
    object.__setattr__(services, "sign_in", kept)
    assert browser.get("/console/jobs", follow_redirects=False).status_code == 200
    browser.post("/console/sign-out")
    assert browser.get("/console/jobs", follow_redirects=False).status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost", "sec-fetch-site": "cross-site"},
        {"origin": "http://localhost", "sec-fetch-site": "same-site"},
        {"origin": ""},
        {"origin": "http://["},
        {"origin": "x://localhost"},
        {"origin": "//localhost"},
        {"origin": "http://localhost:99999", "host": "localhost:99999", "sec-fetch-site": "cross-site"},
    ],
)
def test_a_change_that_another_page_asks_for_is_refused(
    services: Services, settings: Settings, headers: dict[str, str]
) -> None:
    browser = browser_of(services, settings, "anybody")
    assert browser.post("/console/jobs/support/r-1/cancel", headers=headers).status_code == 403


def test_a_cookie_is_for_the_pages_alone(services: Services, settings: Settings) -> None:
    browser = browser_of(services, settings, "anybody")
    assert browser.get("/requests").status_code == 401
    assert browser.post("/requests", json={"model": "support"}).status_code == 401


def test_without_a_sign_in_nobody_is_asked(services: Services) -> None:
    browser = browser_of(services, Settings())
    assert browser.get("/", follow_redirects=True).status_code == 200
    assert browser.get("/console/sign-in", follow_redirects=False).status_code == 303


def test_a_sign_in_needs_a_key_that_replicas_share(tokens_file: Path) -> None:
    with pytest.raises(InvalidSettingsError, match="session_key_file"):
        sessions_of(Settings(api=ApiSettings(tokens_file=tokens_file)))


def test_of_a_token_s_claims_a_session_keeps_what_the_api_decides_by() -> None:
    claims = {"sub": "ada", "email": "ada@example.com", "groups": ["everybody", "ml", *map(str, range(500))]}
    grant = ClaimGrant(value="ml", roles=(Role.VIEWER,))
    settings = ApiSettings(roles_claim="groups", grants=(grant,))
    assert relevant(claims, settings) == {"sub": "ada", "groups": ["ml"]}
    nested = {"sub": "ada", "realm_access": {"roles": ["viewer", "offline_access"]}}
    assert relevant(nested, ApiSettings(roles_claim="realm_access.roles")) == {
        "sub": "ada",
        "realm_access.roles": ["viewer"],
    }
    assert relevant({"sub": "ada", "roles": "viewer other"}, ApiSettings())["roles"] == ["viewer"]
    odd: dict[str, Any] = {"sub": "ada", "roles": ["viewer", ["viewer"], {}, None, 1]}
    assert relevant(odd, ApiSettings())["roles"] == ["viewer"]


@pytest.mark.parametrize(("headers", "name"), [({}, "local-operator"), ({"x-forwarded-user": "ada"}, "ada")])
def test_without_a_sign_in_a_page_says_as_whom_it_asks(services: Services, headers: dict[str, str], name: str) -> None:
    page = browser_of(services, Settings()).get("/console/", headers=headers).text
    assert f"</span> {name}</span>" in page
    assert "Sign out" not in page
