"""Posts a notice to a webhook: signed, to a checked address, without following redirects."""

import base64
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import urllib3

from foldtune.settings import Webhook
from notifications.notices import Notice

# Of connecting, and of waiting for each part of the answer; and of all of it, which may come byte by byte.
TIMEOUT_SECONDS = 10.0
ATTEMPT_SECONDS = 2 * TIMEOUT_SECONDS
MIN_SECRET_BYTES = 24
_SECRET_PREFIX = b"whsec_"
# Translated to IPv4 by the network (RFC 6052): what stands in its last 32 bits counts.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All others are local, translated or not assigned, whatever this version of Python knows of them.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_UNCONNECTED = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class DeliveryError(Exception):
    """The webhook did not take the notice; the message has no part of its address."""


def post(webhook: Webhook, notice: Notice) -> None:
    """Post a notice once.

    Raises:
        DeliveryError: there is no answer, or another one than 2xx.
        OSError, ValueError: the file of the secret cannot be read, or holds none.
    """
    url = urlsplit(webhook.url.get_secret_value())
    body, sent = notice.body, int(time.time())
    headers = {
        "Host": url.netloc,
        "Content-Type": "application/json",
        "User-Agent": "foldtune",
        "webhook-id": notice.id,
        "webhook-timestamp": str(sent),
        "webhook-signature": signature(secret(webhook.secret_file.read_bytes()), notice.id, sent, body),
    }
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    status = _first_answer(url, _addresses(url, private=webhook.private), path, body, headers)
    if not 200 <= status < 300:
        kind = "a redirect, which is not followed: " if 300 <= status < 400 else ""
        raise DeliveryError(f"{kind}status {status}")


def secret(content: bytes) -> bytes:
    """The key in a secret's file.

    Raises:
        ValueError: it is too short, or not in base64.
    """
    content = content.strip()
    encoded = content.startswith(_SECRET_PREFIX)
    key = base64.b64decode(content.removeprefix(_SECRET_PREFIX), validate=True) if encoded else content
    if len(key) < MIN_SECRET_BYTES:
        raise ValueError(f"a webhook's secret has {len(key)} bytes, at least {MIN_SECRET_BYTES}")
    return key


def signature(key: bytes, identifier: str, sent: int, body: bytes) -> str:
    """By the Standard Webhooks specification, version 1 of its symmetric signatures."""
    digest = hmac.digest(key, b"%s.%d.%s" % (identifier.encode(), sent, body), "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def is_public(address: Address) -> bool:
    """Whether an address is of the Internet: not of this machine, a private network, or a cloud's metadata."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        # Teredo's IPv4 addresses are hidden in it, one of them inverted.
        if address.teredo or address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast


def _addresses(url: SplitResult, *, private: bool) -> list[str]:
    """The addresses of the host, all of which may be used: what is connected to is what was checked."""
    try:
        found = socket.getaddrinfo(url.hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DeliveryError("the host has no address") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not private and not all(is_public(ipaddress.ip_address(address.partition("%")[0])) for address in addresses):
        raise DeliveryError("the host has a private address, which `private` does not allow")
    return addresses


def _first_answer(url: SplitResult, addresses: list[str], path: str, body: bytes, headers: dict[str, str]) -> int:
    """The status of the first address that can be connected to."""
    ends_at = time.monotonic() + ATTEMPT_SECONDS
    for number, address in enumerate(addresses, 1):
        if (left := ends_at - time.monotonic()) <= 0:
            break
        try:
            with _connection(url, address) as pool, _ended_after(left, pool):
                answer = pool.urlopen("POST", path, body, headers, redirect=False, preload_content=False)
                answer.close()
                return answer.status
        except urllib3.exceptions.HTTPError as error:
            if number == len(addresses) or not isinstance(error, _UNCONNECTED):
                # Its text has the path, which may be a secret.
                raise DeliveryError(f"no answer: {type(error).__name__}") from error
    raise DeliveryError(f"no answer within {ATTEMPT_SECONDS:.0f} s" if addresses else "the host has no address")


@contextmanager
def _ended_after(seconds: float, pool: urllib3.HTTPConnectionPool) -> Iterator[None]:
    """Cut the pool's connection after a time, whatever has come until then: its timeouts are of each part."""
    connections: list[Any] = []
    kind: Any = pool.ConnectionCls

    def connection(*args: Any, **options: Any) -> Any:
        connections.append(kind(*args, **options))
        return connections[-1]

    def cut() -> None:
        for each in connections:
            with suppress(OSError, AttributeError):
                # Not that of TLS, which another thread is reading from.
                socket.socket.shutdown(each.sock, socket.SHUT_RDWR)

    pool.ConnectionCls = cast("Any", connection)
    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _connection(url: SplitResult, address: str) -> urllib3.HTTPConnectionPool:
    timeout = urllib3.Timeout(connect=TIMEOUT_SECONDS, read=TIMEOUT_SECONDS)
    if url.scheme == "http":
        return urllib3.HTTPConnectionPool(address, url.port, timeout=timeout, retries=False)
    # The certificate is that of the name.
    host = url.hostname
    return urllib3.HTTPSConnectionPool(
        address, url.port, timeout=timeout, retries=False, server_hostname=host, assert_hostname=host
    )
