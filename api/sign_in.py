"""Who calls: by a token of an OpenID Connect provider or of the tokens' file; without sign-in, whoever reaches us."""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Protocol

import jwt
import structlog
from jwt import PyJWK, PyJWKClient
from pydantic import Field, TypeAdapter, ValidationError

from api.access import Caller, caller_of, shortened
from api.problems import ProblemError, unavailable
from foldtune.errors import InvalidSettingsError
from foldtune.events import Sha256
from foldtune.excerpts import excerpt
from foldtune.reasons import explain
from foldtune.settings import TOKEN_ALGORITHMS, ApiSettings, Grant, Role

_log = structlog.get_logger(__name__)

# A key that the provider withdraws is refused after this time, ...
_KEYS_SECONDS = 300.0
# ... and one that is not known asked for at most once in this: anybody can write any key id.
_RETRY_SECONDS = 5.0
_FETCH_SECONDS = 5.0
_FETCH_ALL_SECONDS = 15.0
# Of its own: an object store that does not answer must not keep callers from signing in.
_THREAD = ThreadPoolExecutor(1, "keys")
_MAX_TOKEN = 16 * 1024
_CHALLENGE = {"www-authenticate": 'Bearer realm="foldtune"'}


class SignIn(Protocol):
    """Tells who calls."""

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """The caller by the headers of a call.

        Raises:
            ProblemError: 401, there is no valid token; 503, its issuer's keys are not known and cannot be fetched.
        """


class NoSignIn(SignIn):
    """Everybody has every role: only this machine reaches the API, perhaps through a proxy that signs users in."""

    _GRANTS = (Grant(roles=tuple(Role)),)

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        return Caller(shortened(headers.get("x-forwarded-user") or "local-operator"), self._GRANTS)


class FileToken(Grant):
    """A token by its digest, with what it grants."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    sha256: Sha256


class TokenSignIn(SignIn):
    """Bearer tokens: first those of the file, then the provider's."""

    def __init__(self, settings: ApiSettings, file_tokens: Mapping[str, Caller]) -> None:
        self._settings = settings
        self._file_tokens = file_tokens
        self._keys = ProviderKeys(settings.issuer, settings.jwks_url) if settings.issuer else None

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN:
            raise unauthorized("a bearer token is needed")
        # By digest: how long the comparison takes says nothing of a token.
        if known := self.of_file(hashlib.sha256(token.encode(errors="replace")).hexdigest()):
            return known
        if self._keys is None:
            raise unauthorized("the token is not known")
        return caller_of(await self._claims(token, self._keys), self._settings)

    def of_file(self, sha256: str) -> Caller | None:
        """The caller whose token in the file has this digest."""
        return self._file_tokens.get(sha256)

    async def _claims(self, token: str, keys: "ProviderKeys") -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in TOKEN_ALGORITHMS:
                raise unauthorized("the token's algorithm is not accepted")
            key = await keys.find(str(header.get("kid", "")))
            if key is None:
                raise unauthorized("the token is signed by a key that its issuer does not publish")
            return jwt.decode(
                token,
                key,
                algorithms=TOKEN_ALGORITHMS,
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            # Its message says which claim is wrong, and quotes none of the token.
            raise unauthorized(f"the token is not valid: {type(error).__name__.removesuffix('Error')}") from error


class ProviderKeys:
    """The keys that an issuer publishes, by id; fetched again when one is not known, and after a while."""

    def __init__(self, issuer: str, jwks_url: str | None = None) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._keys: dict[str, PyJWK] = {}
        self._fetched = self._tried = -_KEYS_SECONDS
        self._lock = asyncio.Lock()

    async def find(self, key_id: str) -> PyJWK | None:
        """The key with this id; ``None`` where the issuer has none.

        Raises:
            ProblemError: 503, no keys could be fetched yet.
        """
        # While one caller asks the issuer, the others do not wait for it.
        if self._has_current(key_id) or (key_id in self._keys and self._lock.locked() and not self._are_too_old()):
            return self._keys[key_id]
        async with self._lock:
            if not self._has_current(key_id) and time.monotonic() - self._tried > _RETRY_SECONDS:
                await self._fetch()
            # An issuer that is away for long may have withdrawn keys meanwhile, which nobody can tell.
            if not self._keys or self._are_too_old():
                raise unavailable()
            return self._keys.get(key_id)

    def _has_current(self, key_id: str) -> bool:
        return key_id in self._keys and time.monotonic() - self._fetched < _KEYS_SECONDS

    def _are_too_old(self) -> bool:
        return time.monotonic() - self._fetched > 2 * _KEYS_SECONDS

    async def _fetch(self) -> None:
        self._tried = time.monotonic()
        try:
            async with asyncio.timeout(_FETCH_ALL_SECONDS):
                self._keys = await asyncio.get_running_loop().run_in_executor(_THREAD, self._download)
            self._fetched = time.monotonic()
        except Exception as error:
            # Whatever the issuer answers, known keys go on for a while.
            reason = f"{type(error).__name__}: {error}"
            _log.warning("keys of the token issuer not fetched", issuer=self._issuer, error=excerpt(reason))

    def _download(self) -> dict[str, PyJWK]:
        if self._jwks_url is None:
            # Not a set of keys, but fetched the same way: with a time limit, and over verified TLS.
            address = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            found = _client(address).fetch_data()
            if found["issuer"] != self._issuer:
                msg = f"{address} is of the issuer {found['issuer']!r}"
                raise ValueError(msg)
            if self._issuer.startswith("https:") and not str(found["jwks_uri"]).startswith("https:"):
                msg = f"{address} names keys at an address without https"
                raise ValueError(msg)
            self._jwks_url = str(found["jwks_uri"])
        return {key.key_id or "": key for key in _client(self._jwks_url).get_signing_keys()}


def _client(address: str) -> PyJWKClient:
    return PyJWKClient(address, cache_jwk_set=False, timeout=_FETCH_SECONDS)


def sign_in(settings: ApiSettings) -> SignIn:
    """The sign-in of the settings.

    Raises:
        InvalidSettingsError: the tokens' file is not as it should be.
    """
    if not settings.has_sign_in:
        return NoSignIn()
    return TokenSignIn(settings, read_tokens(settings.tokens_file) if settings.tokens_file else {})


def read_tokens(path: Path) -> dict[str, Caller]:
    """The callers of the tokens' file, by the SHA-256 of their token; raises ``InvalidSettingsError``."""
    try:
        tokens = TypeAdapter(tuple[FileToken, ...]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidSettingsError(
            f"api.tokens_file {path}: {'; '.join(explain(error)).removeprefix('event: ')}"
        ) from None
    except OSError as error:
        raise InvalidSettingsError(f"api.tokens_file {path}: {error}") from error
    callers = {token.sha256: Caller(token.name, (token,)) for token in tokens}
    if len(callers) < len(tokens):
        raise InvalidSettingsError(f"api.tokens_file {path}: a token stands there twice")
    return callers


def unauthorized(reason: str) -> ProblemError:
    """No valid token came with a call."""
    return ProblemError(HTTPStatus.UNAUTHORIZED, f"authorization: {reason}", headers=_CHALLENGE)
