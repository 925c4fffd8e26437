"""A provider that answers something else than it should, or nothing."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from api.context import Services
from console import oidc
from console.oidc import Attempt, Provider, ProviderUnavailableError, Registration, SignInError
from foldtune.settings import ApiSettings, ConsoleSettings, Settings

from .conftest import browser_of

ATTEMPT = Attempt("state", "nonce", "v" * 64)
KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {"keys": [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())) | {"kid": "one"}]}


@contextmanager
def answering(**answers: bytes | None) -> Iterator[str]:
    """Its address; it answers by the last part of a path, and is silent where ``None`` is given."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answers[self.path.rpartition("/")[2].partition("-")[0]]
            if content is None:
                over.wait(10)
                return
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            """Nothing to read."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        places = {f"{name}_endpoint": f"{address}/{name}" for name in ("authorization", "token")}
        document = {"issuer": address, "jwks_uri": f"{address}/keys", **places}
        answers.setdefault("openid", json.dumps(document).encode())
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield address
        finally:
            over.set()
            server.shutdown()


def provider(issuer: str) -> Provider:
    registered = Registration("console", None, "http://localhost/console/signed-in", "openid")
    return Provider(issuer, registered, timedelta(0))


def id_token(issuer: str, **claims: Any) -> str:
    at = int(time.time())
    usual = {"iss": issuer, "aud": "console", "sub": "ada", "nonce": "nonce", "iat": at, "exp": at + 60}
    return jwt.encode(usual | claims, KEY, "ES256", {"kid": "one"})


def claims_of(tokens: Any, keys: Any = KEYS, **claims: Any) -> dict[str, Any]:
    """What the console makes of such answers; ``tokens`` without content stands for a good one."""
    answers: dict[str, bytes | None] = {"keys": keys if isinstance(keys, bytes) else json.dumps(keys).encode()}
    with answering(token=tokens, **answers) as issuer:
        if tokens == b"":
            found = provider(issuer)
            with answering(
                token=json.dumps({"access_token": "a", "id_token": id_token(issuer, **claims)}).encode()
            ) as at:
                found._found = {"token_endpoint": f"{at}/token", "jwks_uri": f"{issuer}/keys"}
                return asyncio.run(found.claims(ATTEMPT, "code"))
        return asyncio.run(provider(issuer).claims(ATTEMPT, "code"))


def test_a_good_answer_signs_somebody_in() -> None:
    assert claims_of(b"")["sub"] == "ada"


@pytest.mark.parametrize(
    "tokens", [b"<html>", b"[]", b"null", b'"x"', b"{}", b'{"id_token": null}', b'{"id_token": {}}', b"\xff"]
)
def test_tokens_that_are_none_sign_nobody_in(tokens: bytes) -> None:
    with pytest.raises(SignInError):
        claims_of(tokens)


@pytest.mark.parametrize("keys", [b"<html>", [], None, {"keys": {}}, {"keys": [1]}, {"keys": []}, {}, b"[" * 100_000])
def test_keys_that_are_none_sign_nobody_in(keys: Any) -> None:
    with pytest.raises(SignInError):
        claims_of(b"", keys)


@pytest.mark.parametrize(
    "claims",
    [{"nonce": "of another"}, {"aud": "foldtune"}, {"iss": "https://other.example"}, {"exp": 1}, {"sub": ["ada"]}],
    ids=str,
)
def test_a_token_for_somebody_else_signs_nobody_in(claims: dict[str, Any]) -> None:
    with pytest.raises(SignInError):
        claims_of(b"", **claims)


@pytest.mark.parametrize("found", [b"<html>", b"[]", b"null", b"{}", b"[" * 100_000])
def test_a_provider_that_does_not_say_where_it_is_cannot_be_reached(found: bytes) -> None:
    with answering(openid=found) as issuer, pytest.raises(ProviderUnavailableError):
        asyncio.run(provider(issuer).address(ATTEMPT))


@pytest.mark.parametrize("silent", ["openid", "token", "keys"])
def test_a_provider_that_is_silent_is_waited_for_no_longer_than_a_page(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_LIMIT_SECONDS", 0.1)
    answers: dict[str, bytes | None] = {"token": json.dumps({"id_token": id_token("any")}).encode(), silent: None}
    with answering(**answers) as issuer, pytest.raises(ProviderUnavailableError, match="cannot be reached"):
        asyncio.run(provider(issuer).claims(ATTEMPT, "code"))


def test_a_long_address_keeps_nobody_from_signing_in(services: Services, settings: Settings, tmp_path: Path) -> None:
    with answering() as issuer:
        configured = Settings(
            api=ApiSettings(issuer=issuer, audience="foldtune"),
            console=ConsoleSettings(
                url="http://localhost", client_id="console", session_key_file=settings.console.session_key_file
            ),
        )
        browser = browser_of(services, configured)
        for to in ("/console/jobs", f"/console/fine-tune?data.folders={'x' * 5000}"):
            answer = browser.get("/console/sign-in/provider", params={"to": to}, follow_redirects=False)
            assert answer.headers["location"].startswith(f"{issuer}/authorization?")
            # Browsers drop one of more than 4,096 bytes.
            assert len(answer.headers["set-cookie"]) < 4096
