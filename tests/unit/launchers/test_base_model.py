"""A base model that cannot be trained is known before its job is launched."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foldtune.events import ModelReference
from foldtune.testing import MemoryObjectStore
from launchers.base_model import base_model_problem

REVISION = "0" * 40
FILES: dict[str, Any] = {"model.safetensors": {}, "config.json": {}, "tokenizer.json": {}}
BROKEN = FILES | {"adapter_config.json": {}}
REASON = "adapter_config.json: adapters are not supported"


def problem(uri: str, store: MemoryObjectStore | None = None, revision: str | None = None) -> str | None:
    return base_model_problem(ModelReference(uri=uri, revision=revision), store or MemoryObjectStore())


def test_a_folder_is_checked_where_the_launcher_has_it(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert problem(tmp_path.as_uri()) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    assert REASON in str(problem(tmp_path.as_uri()))
    assert problem((tmp_path / "elsewhere").as_uri()) is None


def test_a_model_in_the_bucket_is_checked() -> None:
    store = MemoryObjectStore()
    for name, content in BROKEN.items():
        store.put(f"bases/x/{name}", json.dumps(content).encode())
    assert REASON in str(problem(store.uri("bases/x"), store))
    assert "there are no files" in str(problem(store.uri("bases/y"), store))
    # Whether it is allowed is the trainer's to say.
    assert problem("s3://elsewhere/bases/x", store) is None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub with one model, whose files may be changed."""
    files = dict(BROKEN)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix(f"/org/name/resolve/{REVISION}/")
            if self.path == f"/api/models/org/name/revision/{REVISION}":
                content: Any = {"siblings": [{"rfilename": file} for file in files]}
            elif (content := files.get(name)) is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield files
        server.shutdown()
        thread.join()


def test_a_model_of_the_hub_is_checked_at_its_revision(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert REASON in str(problem("hf://org/name", revision=REVISION))
    del hub["adapter_config.json"]
    assert problem("hf://org/name", revision=REVISION) is None
    assert "no such model or no revision" in str(problem("hf://org/other", revision=REVISION))
    # A private model, of which the hub says nothing else.
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert problem("hf://org/other", revision=REVISION) is None


def test_a_hub_that_does_not_answer_is_left_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for endpoint in ("http://127.0.0.1:9", "file:///etc"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert problem("hf://org/name", revision=REVISION) is None
