"""A proxy before an S3 server that fails requests: ``FaultyS3(endpoint)``; its own address is ``endpoint_url``.

Requests are passed on as they are, so signatures and conditions still hold. It serves as many clients as there are.
"""

import threading
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# The HTTP status of each error code.
CODES = {
    "SlowDown": 503,
    "ServiceUnavailable": 503,
    "InternalError": 500,
    "ExpiredToken": 400,
    "RequestTimeTooSkewed": 403,
    "AccessDenied": 403,
}
# Other faults: no response at all; one that is lost after the server has done the request; none until ``heal``.
CLOSED, LOST, HUNG = "closed", "lost", "hung"

# Called with the method and the path, ``/BUCKET/KEY``.
Matches = Callable[[str, str], bool]


class FaultyS3:
    """Passes requests on to ``endpoint``, until ``fail``; a context manager."""

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self._upstream = (address.hostname or "", address.port or 80)
        self._lock = threading.Lock()
        self._fault: str | None = None
        self._only: Matches = lambda *_: True
        self._times = 0
        self._healed = threading.Event()
        # Of the requests that were failed: method and path.
        self.failed: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, fault: str, only: Matches = lambda *_: True, times: int = 1_000_000) -> None:
        """Fail the next ``times`` requests that ``only`` accepts, with an error code of ``CODES`` or another fault."""
        with self._lock:
            self._fault, self._only, self._times = fault, only, times
            self._healed.clear()

    def heal(self) -> None:
        """Pass on all requests from now on."""
        with self._lock:
            self._fault = None
            self._healed.set()

    def __enter__(self) -> "FaultyS3":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def _next_fault(self, method: str, path: str) -> str | None:
        with self._lock:
            if self._fault is None or self._times == 0 or not self._only(method, path):
                return None
            self._times -= 1
            self.failed.append((method, path))
            return self._fault

    def _forward(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(*self._upstream, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                # Answered by this server; the rest must stay, also the host, since it is signed.
                if name.lower() not in {"expect", "connection"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
            return response.status, response.getheaders(), content
        finally:
            connection.close()


def _handler(proxy: FaultyS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                # The client, or the server, is gone.
                self.close_connection = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy._next_fault(self.command, self.path)
            if fault == HUNG:
                proxy._healed.wait()
                fault = CLOSED
            if fault == CLOSED:
                self.close_connection = True
                return
            if fault in CODES:
                text = f"<Error><Code>{fault}</Code><Message>injected</Message></Error>"
                self._answer(CODES[fault], [("Content-Type", "application/xml")], text.encode())
                return
            status, headers, content = proxy._forward(self.command, self.path, self.headers, body)
            if fault == LOST:
                self.close_connection = True
                return
            self._answer(status, headers, content)

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                    self.send_header(name, value)
            # The length of an object whose head alone was asked for.
            length = {name.lower(): value for name, value in headers}.get("content-length", len(content))
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._serve)
    return Handler
