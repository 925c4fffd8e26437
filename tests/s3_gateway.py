"""A gateway before an S3 server: it drops headers, refuses checksums, or answers in the server's place."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from pydantic import SecretStr

from foldtune.settings import S3Settings

_RENEWED = {"authorization", "x-amz-date", "x-amz-content-sha256", "host", "connection", "expect"}


@dataclass(frozen=True)
class Reply:
    """An answer of the gateway's own; ``status`` 0 closes the connection, ``missing`` bytes of the body never come."""

    status: int
    body: bytes = b""
    missing: int = 0

    @classmethod
    def error(cls, status: int, code: str) -> "Reply":
        """An error as S3 words it."""
        return cls(status, f"<Error><Code>{code}</Code><Message>said {code}</Message></Error>".encode())


@dataclass
class Gateway:
    """What the gateway does to the requests that it gets."""

    upstream: S3Settings | None = None
    dropped: frozenset[str] = frozenset()
    refuses_checksums: bool = False
    # Given to the next requests, one each, before any is passed on.
    replies: list[Reply] = field(default_factory=list)
    # Given to all others.
    reply: Reply | None = None
    requests: int = 0
    # Of the last request.
    authorization: str = ""
    port: int = 0

    @property
    def settings(self) -> S3Settings:
        """Of a client of the gateway."""
        base = self.upstream or S3Settings(access_key_id="key", secret_access_key=SecretStr("secret"))
        return base.model_copy(update={"endpoint_url": f"http://127.0.0.1:{self.port}"})


@contextmanager
def s3_gateway(gateway: Gateway) -> Iterator[Gateway]:
    """Runs a gateway until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            if headers.get("expect"):
                self.send_response_only(100)
                self.end_headers()
            body = self.rfile.read(int(headers.get("content-length", 0)))
            gateway.requests += 1
            gateway.authorization = headers.get("authorization", "")
            reply = gateway.replies.pop(0) if gateway.replies else gateway.reply
            if gateway.refuses_checksums and any("checksum" in name for name in headers):
                reply = Reply.error(501, "NotImplemented")
            if reply is None:
                kept = {name: headers[name] for name in headers.keys() - _RENEWED - gateway.dropped}
                self.forward(kept, body)
            elif reply.status:
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(reply.body) + reply.missing))
                self.end_headers()
                self.wfile.write(reply.body)
            self.close_connection = reply is not None

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def forward(self, headers: dict[str, str], body: bytes) -> None:
            """Pass the request on, signed anew, since a dropped header was part of its signature."""
            upstream = gateway.upstream
            assert upstream
            assert upstream.secret_access_key
            server = urlsplit(upstream.endpoint_url or "")
            request = AWSRequest(self.command, f"http://{server.netloc}{self.path}", headers=headers, data=body)
            credentials = Credentials(upstream.access_key_id or "", upstream.secret_access_key.get_secret_value())
            S3SigV4Auth(credentials, "s3", upstream.region).add_auth(request)
            connection = HTTPConnection(server.netloc, timeout=30)
            connection.request(self.command, self.path, body, dict(request.headers.items()))
            response = connection.getresponse()
            content = response.read()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    gateway.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield gateway
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
