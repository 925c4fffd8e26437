"""Sign-in at an OpenID Connect provider: the authorization code flow with PKCE."""

import asyncio
import secrets
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import httpx
import jwt
import structlog
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from jwt import PyJWK, PyJWKSet

from foldtune.errors import FoldtuneError
from foldtune.excerpts import excerpt
from foldtune.settings import TOKEN_ALGORITHMS

_log = structlog.get_logger(__name__)

# Of one answer's parts, and of all that a page waits for.
_TIMEOUT_SECONDS, _LIMIT_SECONDS = 10.0, 20.0


class SignInError(FoldtuneError):
    """Nobody was signed in:"""


class ProviderUnavailableError(SignInError):
    """The provider does not answer:"""


@dataclass(frozen=True)
class Attempt:
    """What the browser keeps while it is at the provider."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def random(cls) -> "Attempt":
        """One that nobody guesses."""
        return cls(secrets.token_urlsafe(16), secrets.token_urlsafe(16), secrets.token_urlsafe(48))


@dataclass(frozen=True)
class Registration:
    """As what the console is known to the provider; without a secret it is a public client."""

    client_id: str
    client_secret: str | None
    redirect_uri: str
    scope: str


class Provider:
    """The provider, found by discovery at the first sign-in."""

    def __init__(self, issuer: str, registered: Registration, leeway: timedelta) -> None:
        self._issuer = issuer
        self._registered = registered
        self._leeway = leeway
        self._found: dict[str, str] = {}

    async def address(self, attempt: Attempt) -> str:
        """Where the browser signs in.

        Raises:
            ProviderUnavailableError: it does not say where.
        """
        endpoint = await self._endpoint("authorization_endpoint")
        async with self._client() as client:
            url, _ = client.create_authorization_url(
                endpoint, state=attempt.state, nonce=attempt.nonce, code_verifier=attempt.verifier
            )
        return str(url)

    async def claims(self, attempt: Attempt, code: str) -> dict[str, Any]:
        """The claims of the ID token that the provider gives for a code.

        Raises:
            SignInError: it gives none, or one that is not valid.
        """
        endpoint = await self._endpoint("token_endpoint")
        try:
            async with asyncio.timeout(_LIMIT_SECONDS), self._client() as client:
                token = await client.fetch_token(endpoint, code=code, code_verifier=attempt.verifier)
                id_token = str(token["id_token"])
                return self._verified(id_token, await self._key(id_token), attempt.nonce)
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._unavailable(error) from error
        except (AuthlibBaseError, jwt.PyJWTError, KeyError, ValueError, RecursionError) as error:
            # Their texts name what is wrong, and quote no token.
            raise SignInError(f"{type(error).__name__.removesuffix('Error')}: {error}") from error
        except Exception as error:
            # Whatever it answers: libraries look into it as if it were what it should be.
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> ProviderUnavailableError:
        _log.warning("provider not available", issuer=self._issuer, error=excerpt(repr(error)))
        return ProviderUnavailableError(f"{self._issuer} cannot be reached, or answers something else")

    async def _key(self, id_token: str) -> PyJWK:
        """The key that has signed a token, fetched for each: people sign in once in a session."""
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
            answer = await client.get(self._found["jwks_uri"])
        keys = PyJWKSet.from_dict(answer.raise_for_status().json())
        return keys[jwt.get_unverified_header(id_token)["kid"]]

    def _verified(self, id_token: str, key: PyJWK, nonce: str) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            id_token,
            key,
            algorithms=TOKEN_ALGORITHMS,
            audience=self._registered.client_id,
            issuer=self._issuer,
            leeway=self._leeway,
            options={"require": ["exp", "iat", "iss", "aud", "sub"]},
        )
        if not secrets.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            msg = "the ID token is of another sign-in"
            raise ValueError(msg)
        return claims

    async def _endpoint(self, name: str) -> str:
        if not self._found:
            address = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                async with asyncio.timeout(_LIMIT_SECONDS), httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
                    answer = await client.get(address)
                found = answer.raise_for_status().json()
                wanted = {key: str(found[key]) for key in ("authorization_endpoint", "token_endpoint", "jwks_uri")}
                self._check(found["issuer"], wanted.values())
            except Exception as error:
                raise self._unavailable(error) from error
            self._found = wanted
        return self._found[name]

    def _check(self, issuer: str, addresses: Any) -> None:
        if issuer != self._issuer:
            msg = f"it says that it is {issuer!r}"
            raise ValueError(msg)
        if self._issuer.startswith("https:") and not all(address.startswith("https:") for address in addresses):
            msg = "it names an address without https"
            raise ValueError(msg)

    def _client(self) -> AsyncOAuth2Client:
        return AsyncOAuth2Client(
            **asdict(self._registered),
            token_endpoint_auth_method="client_secret_basic" if self._registered.client_secret else "none",
            code_challenge_method="S256",
            timeout=_TIMEOUT_SECONDS,
        )
