"""Tokens: of the file, and of a provider whose keys are given."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.client import BadStatusLine
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_encode

from api.access import Caller
from api.problems import ProblemError
from api.sign_in import NoSignIn, ProviderKeys, TokenSignIn, read_tokens, sign_in
from foldtune.errors import InvalidSettingsError
from foldtune.settings import ApiSettings, Role

ISSUER, AUDIENCE = "https://issuer.example", "foldtune"
SETTINGS = ApiSettings(issuer=ISSUER, audience=AUDIENCE, leeway=timedelta(seconds=10))
KEYS = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in ("one", "two")}
PUBLIC = KEYS["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Provider:
    """Publishes the keys that ``published`` names, or fails."""

    def __init__(self) -> None:
        self.published = ["one"]
        self.fetched = 0
        self.error: Exception | None = None

    def download(self) -> dict[str, Any]:
        self.fetched += 1
        if self.error:
            raise self.error
        algorithm: Any = jwt.get_algorithm_by_name("ES256")
        return {
            kid: jwt.PyJWK(algorithm.to_jwk(KEYS[kid].public_key(), as_dict=True) | {"kid": kid})
            for kid in self.published
        }


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    found = Provider()
    monkeypatch.setattr(ProviderKeys, "_download", lambda _: found.download())
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the keys' age is measured by."""
    moments = [1_000.0]
    monkeypatch.setattr("api.sign_in.time.monotonic", lambda: moments[0])
    return moments


@pytest.fixture
def signed_in(provider: Provider) -> Callable[[str], Caller]:
    signing = TokenSignIn(SETTINGS, {})
    return lambda token: asyncio.run(signing.caller({"authorization": f"Bearer {token}"}))


def token(kid: str = "one", key: Any = None, algorithm: str = "ES256", **claims: Any) -> str:
    now = time.time()
    content = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 60, "roles": ["viewer"]} | claims
    content = {name: value for name, value in content.items() if value is not None}
    return jwt.encode(content, KEYS[kid] if key is None else key, algorithm, headers={"kid": kid})


def hmac_with_the_public_key() -> str:
    header = base64url_encode(json.dumps({"alg": "HS256", "kid": "one", "typ": "JWT"}).encode()).decode()
    signed = f"{header}.{token().split('.')[1]}"
    algorithm: Any = jwt.get_algorithm_by_name("HS256")
    return f"{signed}.{base64url_encode(algorithm.sign(signed.encode(), PUBLIC)).decode()}"


def test_a_token_of_the_provider_names_caller_and_roles(signed_in: Callable[[str], Caller]) -> None:
    caller = signed_in(token())
    assert caller.name == "ada"
    assert [grant.roles for grant in caller.grants] == [(Role.VIEWER,)]
    assert signed_in(token(aud=["other", AUDIENCE])).name == "ada"


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda: token(exp=time.time() - 11), id="expired"),
        pytest.param(lambda: token(exp=None), id="without an end"),
        pytest.param(lambda: token(nbf=time.time() + 11), id="not valid yet"),
        pytest.param(lambda: token(iss="https://other.example"), id="wrong issuer"),
        pytest.param(lambda: token(iss=None), id="no issuer"),
        pytest.param(lambda: token(aud="other"), id="wrong audience"),
        pytest.param(lambda: token(aud=None), id="no audience"),
        pytest.param(lambda: token(exp=[1]), id="an end that is none"),
        pytest.param(lambda: token(nbf={}), id="a beginning that is none"),
        pytest.param(lambda: token(exp=float("inf")), id="an end without end"),
        pytest.param(lambda: token("two"), id="unknown key"),
        pytest.param(lambda: token("one", KEYS["two"]), id="another key under the same id"),
        pytest.param(lambda: token(key="", algorithm="none"), id="alg none"),
        pytest.param(hmac_with_the_public_key, id="hmac with the public key"),
        pytest.param(lambda: f"{token()[:-8]}AAAAAAAA", id="changed signature"),
        pytest.param(lambda: "a.b.c", id="nonsense"),
        pytest.param(lambda: "x" * 20_000, id="too long"),
        pytest.param(lambda: "\udcff", id="no UTF-8"),
    ],
)
def test_any_other_token_is_refused(signed_in: Callable[[str], Caller], bad: Callable[[], str]) -> None:
    with pytest.raises(ProblemError, match="authorization: ") as refused:
        signed_in(bad())
    assert refused.value.status == 401
    assert "www-authenticate" in refused.value.headers


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -5), ("nbf", 5)])
def test_clocks_may_differ_by_the_leeway(signed_in: Callable[[str], Caller], claim: str, seconds: float) -> None:
    assert signed_in(token("one", None, "ES256", **{claim: time.time() + seconds})).name == "ada"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "bearer"])
def test_without_a_bearer_token_a_call_is_refused(header: str) -> None:
    with pytest.raises(ProblemError, match="bearer token"):
        asyncio.run(TokenSignIn(SETTINGS, {}).caller({"authorization": header}))


def test_a_new_key_is_fetched_and_a_withdrawn_one_forgotten(provider: Provider, clock: list[float]) -> None:
    keys = ProviderKeys(ISSUER)

    async def run() -> None:
        assert await keys.find("one")
        provider.published = ["two"]
        assert await keys.find("two") is None, "asked for a moment ago"
        clock[0] += 6
        assert await keys.find("two")
        assert await keys.find("one") is None

    asyncio.run(run())
    assert provider.fetched == 2


def test_a_withdrawn_key_is_refused_after_minutes_though_no_other_is_asked_for(
    provider: Provider, clock: list[float]
) -> None:
    keys = ProviderKeys(ISSUER)

    async def run() -> None:
        assert await keys.find("one")
        provider.published = ["two"]
        clock[0] += 301
        assert await keys.find("one") is None

    asyncio.run(run())


def test_unknown_keys_do_not_have_the_provider_asked_each_time(provider: Provider) -> None:
    keys = ProviderKeys(ISSUER)

    async def run() -> None:
        for number in range(50):
            assert await keys.find(f"guess-{number}") is None

    asyncio.run(run())
    assert provider.fetched == 1


def test_known_keys_outlast_a_provider_that_is_away_for_minutes(provider: Provider, clock: list[float]) -> None:
    keys = ProviderKeys(ISSUER)

    async def run() -> None:
        provider.error = OSError("no route")
        with pytest.raises(ProblemError) as problem:
            await keys.find("one")
        assert problem.value.status == 503
        provider.error = None
        clock[0] += 6
        assert await keys.find("one")
        provider.error = OSError("no route")
        clock[0] += 400
        assert await keys.find("one")
        clock[0] += 300
        with pytest.raises(ProblemError):
            await keys.find("one")

    asyncio.run(run())


@pytest.mark.parametrize("error", [AttributeError("get"), TypeError("indices"), BadStatusLine("ICY 200 OK")])
def test_whatever_the_issuer_answers_its_callers_are_told_to_come_later(provider: Provider, error: Exception) -> None:
    provider.error = error
    with pytest.raises(ProblemError) as problem:
        asyncio.run(ProviderKeys(ISSUER).find("one"))
    assert problem.value.status == 503


def test_while_keys_are_asked_for_known_ones_count(
    provider: Provider, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, answered = ProviderKeys(ISSUER), threading.Event()

    def slow(_: ProviderKeys) -> dict[str, Any]:
        assert answered.wait(10)
        return provider.download()

    async def run() -> None:
        await keys.find("one")
        monkeypatch.setattr(ProviderKeys, "_download", slow)
        clock[0] += 400
        asking = asyncio.create_task(keys.find("one"))
        await asyncio.sleep(0)
        try:
            assert await asyncio.wait_for(keys.find("one"), 5)
            assert not asking.done()
        finally:
            answered.set()
        assert await asking

    asyncio.run(run())


@pytest.mark.usefixtures("provider")
def test_callers_sign_in_while_other_threads_are_all_taken() -> None:
    taken = threading.Event()

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        hanging = asyncio.create_task(asyncio.to_thread(taken.wait, 10))
        await asyncio.sleep(0)
        try:
            assert await asyncio.wait_for(ProviderKeys(ISSUER).find("one"), 5)
        finally:
            taken.set()
            await hanging

    asyncio.run(run())


def test_a_token_of_the_file_is_known_by_its_digest(tokens_file: Path) -> None:
    signing = sign_in(ApiSettings(tokens_file=tokens_file))
    caller = asyncio.run(signing.caller({"authorization": "Bearer viewer"}))
    assert (caller.name, caller.grants[0].roles) == ("viewer", (Role.VIEWER,))
    with pytest.raises(ProblemError):
        asyncio.run(signing.caller({"authorization": "Bearer viewe"}))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("nonsense", "tokens_file"),
        ([{"name": "a", "sha256": "0" * 63, "roles": ["viewer"]}], "sha256"),
        ([{"name": "a", "sha256": "0" * 64, "roles": ["root"]}], "roles"),
        ([{"name": "a", "sha256": "0" * 64, "roles": []}], "roles"),
        ([{"name": "a", "sha256": "0" * 64}], "roles"),
        ([{"name": "a", "sha256": "0" * 64, "roles": ["viewer"], "model": "x"}], "model"),
        ([{"name": name, "sha256": "0" * 64, "roles": ["viewer"]} for name in "ab"], "twice"),
    ],
)
def test_a_wrong_file_keeps_the_api_from_starting(tmp_path: Path, entries: object, words: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(InvalidSettingsError, match=words):
        read_tokens(path)


@pytest.mark.parametrize(("headers", "name"), [({"x-forwarded-user": "ada"}, "ada"), ({}, "local-operator")])
def test_without_sign_in_a_proxy_names_the_caller(headers: dict[str, str], name: str) -> None:
    caller = asyncio.run(NoSignIn().caller(headers))
    assert caller.name == name
    assert {role for grant in caller.grants for role in grant.roles} == set(Role)
