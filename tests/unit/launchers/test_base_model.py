"""A base model that cannot be trained is known before its job is launched."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from foldtune.events import ModelReference
from foldtune.testing import MemoryObjectStore
from launchers.base_model import base_model_problem
from tests.weights import bert, safetensors

REVISION = "0" * 40
STORE = MemoryObjectStore()
WEIGHTS = safetensors(bert())
FILES = {"model.safetensors": WEIGHTS, "config.json": b'{"num_hidden_layers": 3}', "tokenizer.json": b"{}"}
BROKEN = FILES | {"adapter_config.json": b"{}"}
REASON = "adapter_config.json: adapters are not supported"


def problem(
    uri: str,
    store: MemoryObjectStore | None = None,
    revision: str | None = None,
    folders: tuple[Path, ...] = (Path("/"),),
) -> str | None:
    return base_model_problem(ModelReference(uri=uri, revision=revision), store or MemoryObjectStore(), folders)


def test_a_folder_is_checked_where_the_launcher_has_it(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    assert problem(tmp_path.as_uri()) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    assert REASON in str(problem(tmp_path.as_uri()))
    assert problem((tmp_path / "elsewhere").as_uri()) is None


def test_a_folder_outside_those_allowed_is_not_read(tmp_path: Path) -> None:
    allowed = tmp_path / "models"
    allowed.mkdir()
    (tmp_path / "config.json").write_text("no JSON, and nobody's to see")
    (allowed / "link").symlink_to(tmp_path)
    for folder in (tmp_path, allowed / "link", allowed / ".."):
        assert problem(f"file://{folder}", folders=(allowed,)) is None
    assert problem(allowed.as_uri(), folders=(allowed,))


def test_a_model_in_the_bucket_is_checked() -> None:
    store = MemoryObjectStore()
    for name, content in BROKEN.items():
        store.put(f"bases/x/{name}", content)
    assert REASON in str(problem(store.uri("bases/x"), store))
    assert "there are no files" in str(problem(store.uri("bases/y"), store))
    # Whether it is allowed is the trainer's to say.
    assert problem("s3://elsewhere/bases/x", store) is None


def put_in_folder(folder: Path, _: dict[str, bytes], weights: bytes) -> str:
    for name, content in (FILES | {"model.safetensors": weights}).items():
        (folder / name).write_bytes(content)
    return folder.as_uri()


def put_in_bucket(_: Path, __: dict[str, bytes], weights: bytes) -> str:
    for name, content in (FILES | {"model.safetensors": weights}).items():
        STORE.put(f"bases/x/{name}", content)
    return STORE.uri("bases/x")


def put_on_hub(_: Path, hub: dict[str, bytes], weights: bytes) -> str:
    del hub["adapter_config.json"]
    hub["model.safetensors"] = weights
    return "hf://org/name"


@pytest.mark.parametrize("put", [put_in_folder, put_in_bucket, put_on_hub])
@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (WEIGHTS, None),
        (WEIGHTS[:-1], "model.safetensors is not whole"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"", "is not whole"),
        (safetensors(bert(layers=2)), "3 layers, of which 1 have no weights"),
    ],
)
def test_weights_are_checked_by_the_beginning_of_their_files(
    put: Callable[[Path, dict[str, bytes], bytes], str],
    weights: bytes,
    reason: str | None,
    tmp_path: Path,
    hub: dict[str, bytes],
) -> None:
    found = problem(put(tmp_path, hub, weights), STORE, REVISION)
    assert found is None if reason is None else reason in str(found)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub with one model, whose files may be changed."""
    files = dict(BROKEN)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix(f"/org/name/resolve/{REVISION}/")
            if self.path == f"/api/models/org/name/revision/{REVISION}":
                content = json.dumps({"siblings": [{"rfilename": file} for file in files]}).encode()
            elif name not in files:
                self.send_error(404)
                return
            else:
                content = files[name]
            self.send_response(206 if "Range" in self.headers else 200)
            if "Range" in self.headers:
                start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
                content = content[start : end + 1]
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

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


def test_a_model_of_the_hub_is_checked_at_its_revision(hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
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
