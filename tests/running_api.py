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
from tests.support import ChildProcess


@contextmanager
def running_api(variables: dict[str, str], folder: Path, *options: str, port: int | None = None) -> Iterator[str]:
    """Its address, once it is ready; it ends by itself on SIGTERM."""
    port = port or free_port()
    child = ChildProcess(["api", "--port", str(port), *options], variables, folder / "api.log")
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{address}/ready", timeout=5):  # noqa: S310  this machine's own server
                    break
            except OSError:
                assert child.alive, child.log.read_text()
                assert time.monotonic() < deadline, child.log.read_text()
                time.sleep(0.1)
        yield address
        assert child.stop() == 0
    finally:
        if child.alive:
            child.kill()


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
