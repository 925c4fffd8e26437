"""A broker with TLS, SASL and ACLs, and what its clients need: certificates, users, and a server of tokens."""

import base64
import ipaddress
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from infra.local.options import LocalOptions
from infra.local.ports import HOST, free_port
from infra.local.stack import LocalServers

# By the name of the listener: the protocol of its clients.
LISTENERS = {"TLS": "SSL", "MTLS": "SSL", "SCRAM": "SASL_SSL", "OAUTH": "SASL_SSL"}
PASSWORD = "correct horse"  # noqa: S105
ISSUER, AUDIENCE = "https://issuer.example.com/", "kafka"
# As a broker of Amazon MSK does, after hours.
REAUTHENTICATION_SECONDS = 3
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_OAUTH = "org.apache.kafka.common.security.oauthbearer"


@dataclass
class SecuredServers:
    """The servers, whose own listener without credentials is the super user's."""

    servers: LocalServers
    ports: dict[str, int]
    folder: Path
    token_url: str

    def environment(self, listener: str, **more: str) -> dict[str, str]:
        """The variables of a client of a listener, without its credentials."""
        return self.servers.environment | {
            "FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS": f"{HOST}:{self.ports[listener]}",
            "FOLDTUNE_KAFKA__SECURITY_PROTOCOL": LISTENERS[listener],
            "FOLDTUNE_KAFKA__SSL_CAFILE": str(self.folder / "ca.pem"),
            **more,
        }

    def user(self, name: str, mechanism: str = "SCRAM-SHA-512", password: str = PASSWORD) -> dict[str, str]:
        """The variables of a user with a password."""
        credentials = {"SASL_MECHANISM": mechanism, "SASL_USERNAME": name, "SASL_PASSWORD": password}
        return self.environment("SCRAM", **{f"FOLDTUNE_KAFKA__{field}": value for field, value in credentials.items()})

    def certified(self) -> dict[str, str]:
        """The variables of a client with a certificate."""
        files = {"SSL_CERTFILE": "client.pem", "SSL_KEYFILE": "client.key"}
        variables = {f"FOLDTUNE_KAFKA__{field}": str(self.folder / name) for field, name in files.items()}
        return self.environment("MTLS", **variables)

    def with_tokens(self, client: str, password: str = PASSWORD) -> dict[str, str]:
        """The variables of a client of the authorization server."""
        variables = self.user(client, "OAUTHBEARER", password)
        endpoint = {"FOLDTUNE_KAFKA__SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": self.token_url}
        return variables | endpoint | {"FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS": f"{HOST}:{self.ports['OAUTH']}"}

    def create_users(self, names: Sequence[str]) -> None:
        """Create users of both SCRAM mechanisms."""
        credentials = [
            UserScramCredentialUpsertion(name, mechanism, PASSWORD, iterations=4096)
            for name in names
            for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
        ]
        with closing(KafkaAdminClient(bootstrap_servers=self.servers.bootstrap_servers)) as admin:
            # One of a user at a time, says the broker.
            for part in (credentials[::2], credentials[1::2]):
                assert not any(admin.alter_user_scram_credentials(part).values())


@contextmanager
def secured_servers(folder: Path) -> Iterator[SecuredServers]:
    """Servers with every listener."""
    write_certificates(folder)
    ports: dict[str, int] = {}
    for name in LISTENERS:
        ports[name] = free_port(exclude=frozenset(ports.values()))
    with token_server() as url, pytest.MonkeyPatch.context() as patch:
        # Kafka fetches keys from no other address.
        patch.setenv("JAVA_TOOL_OPTIONS", f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={url}/keys")
        options = LocalOptions(
            data_dir=folder / "servers",
            kafka_port=free_port(exclude=frozenset(ports.values())),
            s3_port=None,
            keep_data=False,
            kafka_settings=broker_settings(folder, ports, f"{url}/keys"),
        )
        with LocalServers(options) as servers:
            yield SecuredServers(servers, ports, folder, f"{url}/token")


def broker_settings(folder: Path, ports: dict[str, int], keys_url: str) -> dict[str, str]:
    listeners = ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())
    return {
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in LISTENERS.items()),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # And the users of tests that are about the connection alone.
        "super.users": "User:ANONYMOUS;User:CN=client;User:plain;User:client",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.mtls.ssl.client.auth": "required",
        "listener.name.scram.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.scram.scram-sha-256.sasl.jaas.config": _SCRAM,
        "listener.name.scram.scram-sha-512.sasl.jaas.config": _SCRAM,
        "listener.name.scram.plain.sasl.jaas.config": (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required user_plain="{PASSWORD}";'
        ),
        "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.oauth.oauthbearer.sasl.jaas.config": f"{_OAUTH}.OAuthBearerLoginModule required;",
        "listener.name.oauth.oauthbearer.sasl.server.callback.handler.class": (
            f"{_OAUTH}.OAuthBearerValidatorCallbackHandler"
        ),
        "listener.name.oauth.oauthbearer.connections.max.reauth.ms": str(REAUTHENTICATION_SECONDS * 1000),
        "listener.name.oauth.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": keys_url,
        "listener.name.oauth.oauthbearer.sasl.oauthbearer.expected.audience": AUDIENCE,
        "listener.name.oauth.oauthbearer.sasl.oauthbearer.expected.issuer": ISSUER,
    }


# ── Certificates ─────────────────────────────────────────────────────────────────────────────────────────────────────


def write_certificates(folder: Path) -> None:
    """An authority, the broker's key and certificate in one file, and a client's in two."""
    authority, authority_key = certificate("foldtune test authority")
    (folder / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
    broker, broker_key = certificate("broker", (authority, authority_key))
    (folder / "broker.pem").write_bytes(pem(broker_key) + broker.public_bytes(Encoding.PEM))
    client, client_key = certificate("client", (authority, authority_key))
    (folder / "client.pem").write_bytes(client.public_bytes(Encoding.PEM))
    (folder / "client.key").write_bytes(pem(client_key))


def certificate(
    name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Of an authority, or issued by one to this machine's address."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) - timedelta(days=1)
    builder = (
        x509.CertificateBuilder(
            issuer[0].subject if issuer else subject, subject, key.public_key(), x509.random_serial_number()
        )
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=30))
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Without a password."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# ── Tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _json(value: object) -> str:
    return _base64(json.dumps(value).encode())


@contextmanager
def token_server() -> Iterator[str]:
    """Serves its keys below ``/keys``, and below ``/token`` a token for each client that knows the password."""
    key = rsa.generate_private_key(65537, 2048)
    numbers = key.public_key().public_numbers()
    modulus = _base64(numbers.n.to_bytes(256, "big"))
    keys = {"keys": [{"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig", "n": modulus, "e": "AQAB"}]}

    def token(client: str) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": client, "aud": AUDIENCE, "scope": "kafka", "iat": now, "exp": now + 3600}
        signed = f"{_json({'alg': 'RS256', 'kid': '1'})}.{_json(claims)}"
        return f"{signed}.{_base64(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, keys)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            given = self.headers.get("Authorization", "").removeprefix("Basic ")
            client, _, password = base64.b64decode(given).decode().partition(":")
            if unquote_plus(password) != PASSWORD:
                self._answer(401, {"error": "invalid_client"})
                return
            self._answer(200, {"access_token": token(client), "token_type": "Bearer", "expires_in": 3600})

        def _answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
