"""A real OpenID Connect provider: ``tests/oidc/provider.mjs``."""

import base64
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from infra.local.ports import free_port
from tests.node import NODE, ROOT, install_node_packages

RESOURCE = "https://foldtune.example"


class Provider:
    """The provider's process, at its address."""

    def __init__(self, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"

    def token(self, client: str, resource: str = RESOURCE) -> str:
        """A token of a client; clients are named after the roles that they have."""
        body = urlencode({"grant_type": "client_credentials", "resource": resource}).encode()
        login = base64.b64encode(f"{client}:secret".encode()).decode()
        request = urllib.request.Request(f"{self.issuer}/token", body, {"Authorization": f"Basic {login}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  this machine's own server
            return str(json.load(answer)["access_token"])

    def post(self, path: str) -> None:
        urllib.request.urlopen(f"{self.issuer}{path}", b"", timeout=20).close()  # noqa: S310


@contextmanager
def running_provider(log: Path, redirect_uri: str | None = None) -> Iterator[Provider]:
    """A provider in a process of its own; with a redirect URI it has the client ``console``, too."""
    install_node_packages()
    port = free_port()
    command: list[str | Path] = [
        NODE,
        ROOT / "tests" / "oidc" / "provider.mjs",
        str(port),
        *([redirect_uri] if redirect_uri else []),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    provider, deadline = Provider(port), time.monotonic() + 60
    try:
        while True:
            try:
                provider.token("viewer")
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield provider
    finally:
        process.terminate()
        process.wait(20)
