"""Tokens for the brokers, with SASL's mechanism OAUTHBEARER: of an authorization server, or of AWS for Amazon MSK."""

import base64
import json
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import lru_cache, partial
from urllib.parse import quote_plus, urlencode

from kafka.errors import KafkaConnectionError
from kafka.net.sasl.oauth import AbstractTokenProvider

from foldtune.errors import InvalidSettingsError
from foldtune.settings import KafkaSettings

_REQUEST_SECONDS = 10
_MAX_ANSWER_BYTES = 1024 * 1024
# The share of its life for which a token is used again: a connection needs it for longer than a moment.
_REUSED = 0.8
# Of a token whose server does not tell when it expires.
_UNKNOWN_LIFE_SECONDS = 60.0
_MSK_HOST = re.compile(r"\.kafka(?:-serverless)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?(?::|$)")

# A token, and for how many seconds it lives.
Fetch = Callable[[], tuple[str, float]]


class Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """For kafka-python: the present token, fetched anew when the last one is about to expire. Thread-safe."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch, self._clock = fetch, clock
        self._lock = threading.Lock()
        self._token = ""
        self._until = float("-inf")

    def token(self) -> str:
        """A token that has not expired.

        Raises:
            KafkaConnectionError: there is none at the moment; the client connects again later.
        """
        with self._lock:
            if self._clock() >= self._until:
                at = self._clock()
                self._token, seconds = self._fetch()
                self._until = at + seconds * _REUSED
            return self._token


# The clients of a process share it.
@lru_cache(maxsize=4)
def tokens(settings: KafkaSettings) -> Tokens | None:
    """The tokens that the settings ask for; ``None`` where a user has a password.

    Raises:
        InvalidSettingsError: the region of Amazon MSK is not known.
    """
    match settings.sasl_mechanism:
        case "OAUTHBEARER":
            return Tokens(partial(_fetch_from_server, settings))
        case "AWS_MSK_IAM":
            return Tokens(partial(_sign, _region(settings.bootstrap_servers)))
    return None


def _fetch_from_server(settings: KafkaSettings) -> tuple[str, float]:
    """By the grant of client credentials (RFC 6749, sections 2.3.1 and 4.4)."""
    url = settings.sasl_oauthbearer_token_endpoint_url or ""
    secret = settings.sasl_password.get_secret_value() if settings.sasl_password else ""
    credentials = f"{quote_plus(settings.sasl_username or '')}:{quote_plus(secret)}"
    scope = {"scope": settings.sasl_oauthbearer_scope} if settings.sasl_oauthbearer_scope else {}
    request = urllib.request.Request(  # noqa: S310  the setting is an address of HTTP
        url,
        urlencode({"grant_type": "client_credentials"} | scope).encode(),
        {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}", "Accept": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as response:  # noqa: S310
            answer = json.loads(response.read(_MAX_ANSWER_BYTES))
        token = str(answer["access_token"])
        seconds = float(answer.get("expires_in") or _UNKNOWN_LIFE_SECONDS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ssl.SSLError) as error:
        raise KafkaConnectionError(f"no token from {url}: {type(error).__name__} {error}") from error
    # What ends SASL's message would begin another field of it.
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise KafkaConnectionError(f"no token from {url}: its access_token is none")
    return token, seconds


def _region(bootstrap_servers: str) -> str:
    if found := _MSK_HOST.search(bootstrap_servers.partition(",")[0]):
        return found[1]
    import boto3  # noqa: PLC0415  slow to import, and only needed here

    if region := boto3.Session().region_name:
        return region
    raise InvalidSettingsError(f"AWS_REGION is needed for the brokers at {bootstrap_servers}")


def _sign(region: str) -> tuple[str, float]:
    from aws_msk_iam_sasl_signer import MSKAuthTokenProvider  # noqa: PLC0415

    from foldtune.object_store import AWS_ERRORS  # noqa: PLC0415

    try:
        token, expires_at = MSKAuthTokenProvider.generate_auth_token(region)
    except (*AWS_ERRORS, AttributeError) as error:
        # Without credentials, AWS's library meets None.
        raise KafkaConnectionError(f"no token of AWS: {type(error).__name__} {error}") from error
    return str(token), expires_at / 1000 - time.time()
