"""A proxy before an S3 server: it fails requests, answers in the server's place, drops headers or refuses checksums.

Requests are passed on as they are, so signatures and conditions still hold. It serves as many clients as there are.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from foldtune.settings import S3Settings

# The HTTP status of each error code.
CODES = {
    "SlowDown": 503,
    "ServiceUnavailable": 503,
    "InternalError": 500,
    "NotImplemented": 501,
    "ExpiredToken": 400,
    "TokenRefreshRequired": 400,
    "RequestTimeout": 400,
    "NoSuchBucket": 404,
    "RequestTimeTooSkewed": 403,
    "AccessDenied": 403,
    "SignatureDoesNotMatch": 403,
}
# Other faults: no response at all; one that is lost after the server has done the request; none until ``heal``.
CLOSED, LOST, HUNG = "closed", "lost", "hung"
# Of a connection, or of the signature.
_RENEWED = {"authorization", "x-amz-date", "x-amz-content-sha256", "host"}


@dataclass(frozen=True)
class Reply:
    """A response of the proxy's own, of whose body ``missing`` bytes never come."""

    status: int
    body: bytes = b""
    missing: int = 0
    etag: str = ""


# An error code of ``CODES``, one of the other faults, or a response.
Fault = str | Reply
# Called with the method and the path, ``/BUCKET/KEY``.
Matches = Callable[[str, str], bool]
Headers = list[tuple[str, str]]


class S3Proxy:
    """Passes requests on to ``upstream``, until ``fail``; a context manager. Its own address is ``endpoint_url``."""

    def __init__(
        self, upstream: S3Settings, *, dropped: frozenset[str] = frozenset(), refuses_checksums: bool = False
    ) -> None:
        """What lacks the ``dropped`` headers is signed anew with the keys of ``upstream``."""
        self._upstream = upstream
        self._dropped = dropped
        self._refuses_checksums = refuses_checksums
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._only: Matches = lambda *_: True
        self._times = 0
        self._healed = threading.Event()
        # Of the requests that were failed: method and path; and the authorization of the last request.
        self.failed: list[tuple[str, str]] = []
        self.authorization = ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def settings(self) -> S3Settings:
        """Of a client of the proxy."""
        return self._upstream.model_copy(update={"endpoint_url": self.endpoint_url})

    def fail(self, *faults: Fault, only: Matches = lambda *_: True, times: int = 1_000_000) -> None:
        """Fail the next ``times`` requests that ``only`` accepts: with ``faults`` in turn, then the last."""
        with self._lock:
            self._faults, self._only, self._times = list(faults), only, times
            self._healed.clear()

    def heal(self) -> None:
        """Pass on all requests from now on."""
        with self._lock:
            self._times = 0
            self._healed.set()

    def __enter__(self) -> "S3Proxy":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def _next_fault(self, method: str, path: str, headers: Mapping[str, str]) -> Fault | None:
        with self._lock:
            self.authorization = headers.get("Authorization", "")
            if self._refuses_checksums and any("checksum" in name.lower() for name in headers):
                return "NotImplemented"
            if self._times == 0 or not self._only(method, path):
                return None
            self._times -= 1
            self.failed.append((method, path))
            return self._faults.pop(0) if len(self._faults) > 1 else self._faults[0]

    def _forward(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Headers, bytes]:
        # Answered by this server; the rest must stay, also the host, since it is signed.
        kept = {name.lower(): value for name, value in headers.items() if name.lower() not in {"expect", "connection"}}
        if self._dropped:
            kept = self._sign(method, path, {name: kept[name] for name in kept.keys() - self._dropped - _RENEWED}, body)
        address = urlsplit(self._upstream.endpoint_url or "")
        connection = HTTPConnection(address.hostname or "", address.port or 80, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="host" in kept, skip_accept_encoding=True)
            for name, value in kept.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _sign(self, method: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        upstream = self._upstream
        assert upstream.secret_access_key
        request = AWSRequest(method, f"{(upstream.endpoint_url or '').rstrip('/')}{path}", headers=headers, data=body)
        credentials = Credentials(upstream.access_key_id or "", upstream.secret_access_key.get_secret_value())
        S3SigV4Auth(credentials, "s3", upstream.region).add_auth(request)
        return dict(request.headers.items())


def _handler(proxy: S3Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                # The client, or the server, is gone.
                self.close_connection = True

        def _serve(self) -> None:
            headers = dict(self.headers.items())
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy._next_fault(self.command, self.path, headers)
            if fault == HUNG:
                proxy._healed.wait()
            if fault in {HUNG, CLOSED}:
                self.close_connection = True
                return
            if isinstance(fault, Reply):
                etag = [("ETag", fault.etag)] if fault.etag else []
                self._answer(fault.status, etag, fault.body, missing=fault.missing)
                self.close_connection = True
                return
            if fault in CODES:
                text = f"<Error><Code>{fault}</Code><Message>injected</Message></Error>"
                self._answer(CODES[fault], [("Content-Type", "application/xml")], text.encode())
                return
            status, answered, content = proxy._forward(self.command, self.path, headers, body)
            if fault == LOST:
                self.close_connection = True
                return
            self._answer(status, answered, content)

        def _answer(self, status: int, headers: Headers, content: bytes, missing: int = 0) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                    self.send_header(name, value)
            # The length of an object whose head alone was asked for.
            length = {name.lower(): value for name, value in headers}.get("content-length", len(content) + missing)
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(content) + missing))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._serve)
    return Handler
