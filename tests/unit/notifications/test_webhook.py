"""A notice is signed, posted to a checked address, and to no other."""

import base64
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook as Verifier

from foldtune.settings import NoticeType, NotificationSettings, Webhook
from notifications.notices import Notice
from notifications.webhook import DeliveryError, is_public, post, secret
from tests.secured import certificate, pem
from tests.unit.notifications.receiver import Receiver, running_receiver

KEY = b"k" * 32
NOTICE = Notice("foldtune-1", NoticeType.COMPLETED, "support", json.dumps({"type": "completed"}).encode())


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"whsec_" + base64.b64encode(KEY) + b"\n")
    return path


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


def webhook(url: str, secret_file: Path, **more: Any) -> Webhook:
    return Webhook.model_validate({"name": "ops", "url": url, "secret_file": secret_file, **more})


def test_a_receiver_can_check_the_signature(receiver: Receiver, secret_file: Path) -> None:
    post(webhook(f"http://127.0.0.1:{receiver.port}/a/b?token=c", secret_file, private=True), NOTICE)
    ((path, headers, body),) = receiver.received
    assert path == "/a/b?token=c"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == NOTICE.id
    verifier = Verifier(base64.b64encode(KEY).decode())
    assert verifier.verify(body, headers) == {"type": "completed"}
    with pytest.raises(Exception, match="No matching signature"):
        verifier.verify(body + b" ", headers)


@pytest.mark.parametrize("status", [302, 400, 410, 500])
def test_other_answers_are_failures_and_redirects_are_not_followed(
    status: int, receiver: Receiver, secret_file: Path
) -> None:
    receiver.answers = [status]
    with pytest.raises(DeliveryError, match=str(status)):
        post(webhook(f"http://127.0.0.1:{receiver.port}/", secret_file, private=True), NOTICE)
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:4700::1111", True),
        *((private, False) for private in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1")),
        *((private, False) for private in ("169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255")),  # noqa: S104
        *((private, False) for private in ("::1", "::", "fe80::1", "fd00::1", "ff02::1", "fd00:ec2::254")),
        # Of IPv4 in another form.
        *((private, False) for private in ("::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a9fe:a9fe")),
        *((private, False) for private in ("::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::a9fe:a9fe", "fec0::1")),
        *((public, True) for public in ("::ffff:93.184.215.14", "64:ff9b::5db8:d70e")),
    ],
)
def test_private_addresses_are_known_in_every_form(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_no_private_address_is_called(host: str, receiver: Receiver, secret_file: Path) -> None:
    with pytest.raises(DeliveryError, match=r"private address|no address"):
        post(webhook(f"https://{host}:{receiver.port}/", secret_file), NOTICE)
    assert not receiver.received


@contextmanager
def dripping_receiver(drop: bytes) -> Iterator[int]:
    """The port of a receiver that answers with ``drop`` again and again, and never to the end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with suppress(OSError):
                connection = listening.accept()[0]
                with connection:
                    while True:
                        connection.sendall(drop)
                        time.sleep(0.01)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
    thread.join(5)


@pytest.mark.parametrize("drop", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_answer_that_never_ends_is_given_up(drop: bytes, secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notifications.webhook.ATTEMPT_SECONDS", 0.15)
    with dripping_receiver(drop) as port:
        began = time.monotonic()
        with pytest.raises(DeliveryError, match="no answer"):
            post(webhook(f"http://127.0.0.1:{port}/", secret_file, private=True), NOTICE)
        assert time.monotonic() - began < 5


def test_one_private_address_of_several_is_enough(
    receiver: Receiver, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("93.184.215.14", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(DeliveryError, match="private address"):
        post(webhook(f"https://rebind.example:{receiver.port}/", secret_file), NOTICE)


def test_the_certificate_must_be_that_of_the_host(
    secret_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, authority_key = certificate("authority")
    server, server_key = certificate("server", (authority, authority_key))
    (tmp_path / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
    (tmp_path / "server.pem").write_bytes(pem(server_key) + server.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with running_receiver(context) as receiver:
        address = f"https://127.0.0.1:{receiver.port}/"
        with pytest.raises(DeliveryError, match="SSLError"):
            post(webhook(address, secret_file, private=True), NOTICE)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        post(webhook(address, secret_file, private=True), NOTICE)
        # The certificate names the address alone.
        with pytest.raises(DeliveryError, match="SSLError"):
            post(webhook(address.replace("127.0.0.1", "localhost"), secret_file, private=True), NOTICE)
    assert len(receiver.received) == 1


@pytest.mark.parametrize("content", [b"", b"short", b"whsec_" + base64.b64encode(b"short"), b"whsec_" + b"*" * 40])
def test_a_secret_that_is_too_short_or_damaged_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"at least 24|base64|non-base64"):
        secret(content)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "must begin with https"),
        ("ftp://example.com/", "must be https"),
        ("https://name:word@example.com/", "without a user name"),
        ("https:///path", "must be https"),
        ("https://example.com:99999/", "must be https"),
        ("https://[::1/", "must be https"),
    ],
)
def test_addresses_that_cannot_be_meant_are_refused(url: str, reason: str, secret_file: Path) -> None:
    with pytest.raises(ValidationError, match=reason):
        webhook(url, secret_file)


def test_two_webhooks_of_one_name_are_refused(secret_file: Path) -> None:
    one = webhook("https://example.com/", secret_file)
    with pytest.raises(ValidationError, match="two webhooks have the name ops"):
        NotificationSettings(webhooks=(one, one))
    assert "example.com" not in repr(one)
