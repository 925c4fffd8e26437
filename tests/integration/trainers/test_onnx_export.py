import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foldtune.testing import MemoryObjectStore
from tests.jobs import put_job
from tests.models import write_modules
from tests.unit.trainers.test_job import DOCUMENTS, EXAMPLES, Start, start, store
from trainers.errors import OnnxExportError
from trainers.exit_codes import ExitCode
from trainers.model.encoder import Encoder
from trainers.publishing import onnx_export
from trainers.publishing.model_publisher import ArtifactManifest
from trainers.publishing.onnx_export import export_onnx

__all__ = ["start", "store"]
TEXTS = ["one", "", "some more words than that", "and " * 300]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(
    "pooling", ["mean", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("cls", "lasttoken"))]
)
def test_onnx_runtime_gives_the_embeddings_of_the_encoder(pooling: Any, folder: Path) -> None:
    import onnxruntime

    write_modules(folder, pooling, normalize=pooling != "cls", max_seq_length=64, similarity_fn_name="dot")
    export_onnx(folder)
    assert [path.name for path in folder.glob("*.onnx*")] == ["model.onnx"]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    encoder = Encoder.load(folder, "cpu")
    tokens = encoder.tokenize(TEXTS)
    ids, mask = tokens.padded(np.arange(len(TEXTS)), encoder.device)
    (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    np.testing.assert_allclose(found, encoder.encode(TEXTS), atol=1e-4)


def test_an_export_outside_the_tolerance_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(OnnxExportError, match=r"differ by .* the tolerance is -1\.0"):
        export_onnx(folder)
    assert not list(folder.glob("*.onnx*"))


def test_an_error_of_onnx_runtime_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    class FailError(Exception):
        """As those of ONNX Runtime."""

    def fail(*_: object, **__: object) -> None:
        raise FailError("this is an invalid model")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(OnnxExportError, match="ONNX export failed: this is an invalid model"):
        export_onnx(folder)
    assert not list(folder.glob("*.onnx*"))


def test_missing_packages_name_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OnnxExportError, match="extra 'onnx'"):
        export_onnx(folder)


def test_a_model_is_published_as_onnx_or_with_a_warning(
    start: Start, store: MemoryObjectStore, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tables(EXAMPLES, DOCUMENTS)
    assert start(put_job(store, data), onnx=True)[0] == ExitCode.DONE
    manifest = ArtifactManifest.model_validate_json(store.get("models/m/000001/manifest.json"))
    assert "model.onnx" in {file.path for file in manifest.files}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, announcer = start(put_job(store, data, version="000002"), onnx=True)
    assert code == ExitCode.DONE
    assert any("extra 'onnx'" in warning for warning in announcer.statuses[-1].warnings)
    assert not [key for key in store.list("models/m/000002/") if key.endswith("model.onnx")]
