"""``foldtune api`` as a process."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.local.ports import free_port
from tests.oidc_provider import running_provider
from tests.support import ChildProcess


@contextmanager
def running_api(variables: dict[str, str], folder: Path, *options: str, port: int | None = None) -> Iterator[str]:
    """Its address, once it is ready; it ends by itself on SIGTERM."""
    port = port or free_port()
    child = start_api(variables, folder, *options, port=port)
    try:
        yield f"http://127.0.0.1:{port}"
        assert child.stop() == 0
    finally:
        if child.alive:
            child.kill()


def start_api(variables: dict[str, str], folder: Path, *options: str, port: int) -> ChildProcess:
    """Its process, once it is ready."""
    child = ChildProcess(["api", "--port", str(port), *options], variables, folder / "api.log")
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return child
        except OSError:
            if not child.alive or time.monotonic() > deadline:
                child.kill()
                raise AssertionError(child.log.read_text()) from None
            time.sleep(0.1)


@contextmanager
def provider_of_console(folder: Path, address: str) -> Iterator[dict[str, str]]:
    """What a console at an address needs to know of a provider at which it is registered."""
    variables = {"FOLDTUNE_CONSOLE__SESSION_KEY_FILE": "k" * 32, "FOLDTUNE_CONSOLE__CLIENT_SECRET_FILE": "secret"}
    for name, content in variables.items():
        path = folder / name.lower()
        path.write_text(content)
        variables[name] = str(path)
    with running_provider(folder / "provider.log", f"{address}/console/signed-in") as provider:
        yield variables | {
            "FOLDTUNE_API__ISSUER": provider.issuer,
            "FOLDTUNE_API__AUDIENCE": "foldtune",
            "FOLDTUNE_API__ROLES_CLAIM": "realm_access.roles",
            "FOLDTUNE_CONSOLE__URL": address,
            "FOLDTUNE_CONSOLE__CLIENT_ID": "console",
        }


def previewed(api: str, data: dict[str, Any]) -> dict[str, Any]:
    """A preview, once the API follows the answers, and a worker gives one."""
    body = json.dumps({"model": "helpdesk", "data": data}, default=datetime.isoformat).encode()
    request = urllib.request.Request(f"{api}/previews", body, {"Content-Type": "application/json"})  # noqa: S310  this machine's own server
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:  # noqa: S310
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.2)
