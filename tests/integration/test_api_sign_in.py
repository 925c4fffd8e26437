"""Sign-in at a real OpenID Connect provider: every route with every kind of token, and a rotation of its keys."""

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from foldtune.settings import Role, Settings
from tests.api_routes import ALLOWED, BODIES, method_and_path
from tests.oidc_provider import Provider, running_provider
from tests.running_api import running_api


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    with running_provider(tmp_path / "provider.log") as found:
        yield found


def call(api: str, route: str, token: str | None) -> int:
    """The answer's status; asked again for a minute while it is 503, as of topics that are still being read."""
    deadline = time.monotonic() + 60
    while (code := _call(api, route, token)) == HTTPStatus.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
        time.sleep(0.1)
    return code


def _call(api: str, route: str, token: str | None) -> int:
    method, path = method_and_path(route)
    body = json.dumps(BODIES[route]).encode() if route in BODIES else None
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    request = urllib.request.Request(f"{api}{path}", body, headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def unsigned(token: str) -> str:
    """A token with its content, and the algorithm ``none``."""
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    return f"{header}.{token.split('.')[1]}."


def test_every_route_with_every_token_of_a_real_provider(
    variables: dict[str, str], settings: Settings, provider: Provider, tmp_path: Path
) -> None:
    variables |= {
        "FOLDTUNE_API__ISSUER": provider.issuer,
        "FOLDTUNE_API__AUDIENCE": "foldtune",
        "FOLDTUNE_API__ROLES_CLAIM": "realm_access.roles",
        "FOLDTUNE_API__LEEWAY": "PT0S",
        "FOLDTUNE_API__REQUESTS_PER_MINUTE": "100000",
    }
    expired = provider.token("short-lived")
    with running_provider(tmp_path / "other.log") as other:
        elsewhere = other.token("operator")
    bad = {
        "none": None,
        "expired": expired,
        "wrong issuer": elsewhere,
        "wrong audience": provider.token("operator", "https://other.example"),
        "alg none": unsigned(provider.token("operator")),
        "changed": provider.token("operator")[:-8] + "AAAAAAAA",
    }
    tokens = {role: provider.token(role) for role in Role}
    with running_api(variables, tmp_path) as api:
        for route, roles in ALLOWED.items():
            for kind, token in bad.items():
                code = call(api, route, token)
                assert code == (200 if roles is None else 401), (route, kind, code)
            assert roles is None or call(api, route, provider.token("nobody")) == 403
            for role, token in tokens.items():
                code = call(api, route, token)
                assert (code == 403) == (roles is not None and role not in roles), (route, role, code)
                assert code < 500, (route, role, code)
                assert code != 401
        check_rotation(api, provider)


def check_rotation(api: str, provider: Provider) -> None:
    """Tokens of a new key are taken within seconds, and meanwhile those of the old one."""
    old = provider.token("viewer")
    provider.post("/rotate")
    new = provider.token("viewer")
    deadline = time.monotonic() + 20
    while call(api, "GET /requests", new) != 200:
        assert call(api, "GET /requests", old) == 200
        assert time.monotonic() < deadline
        time.sleep(0.5)
    provider.post("/withdraw")
    provider.post("/rotate")
    newest = provider.token("viewer")
    deadline = time.monotonic() + 20
    while call(api, "GET /requests", newest) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    # With the keys that were fetched for it, the withdrawn one is gone.
    assert call(api, "GET /requests", old) == 401
    assert call(api, "GET /requests", new) == 200
