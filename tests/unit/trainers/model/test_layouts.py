"""Each published family's layout is embedded, trained and published as sentence-transformers reads it."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.layouts import LAYOUTS, TEXTS
from tests.unit.trainers.loop.test_training import Steps, request
from trainers.data.dataset import Dataset
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.evaluation.evaluation_set import embed
from trainers.loop import training
from trainers.model.base_models import check_weights
from trainers.model.encoder import Encoder, TextKind
from trainers.publishing.artifacts import write_model

pytestmark = pytest.mark.usefixtures("full_precision")

Base = Callable[..., Path]
# Of the inner loop: poolings, prompts, Dense layers, decoders and ways by kind of text.
QUICK = {"e5", "embedding-gemma", "qwen3-embedding", "instructor", "router"}
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The folder of a layout's tiny model, made once."""
    folders: dict[tuple[str, torch.dtype], Path] = {}

    def make(name: str, dtype: torch.dtype = torch.float32) -> Path:
        if (name, dtype) not in folders:
            folders[name, dtype] = LAYOUTS[name](tmp_path_factory.mktemp("layouts") / name, dtype=dtype)
        return folders[name, dtype]

    return make


def served(folder: Path) -> SentenceTransformer:
    """As serving code loads it."""
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def embeddings(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """Of each way to embed the texts."""
    ways: dict[str, Any] = {name: {"prompt_name": name} for name in model.prompts} | {"": {}}
    options: Any = {"convert_to_tensor": True}
    found = {name: model.encode(list(TEXTS), **way, **options) for name, way in ways.items()}
    found["as question"] = model.encode_query(list(TEXTS), **options)
    found["as document"] = model.encode_document(list(TEXTS), **options)
    return found


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_embeddings_are_those_of_sentence_transformers(name: str, base: Base) -> None:
    folder = base(name)
    check_weights(folder, None)
    encoder, model = Encoder.load(folder, "cpu"), served(folder)
    prompts = {kind: encoder.prompt_name(kind) for kind in ("query", "passage")}
    expected: dict[TextKind, Any] = {
        "query": model.encode(list(TEXTS), prompt_name=prompts["query"], task="query"),
        "passage": model.encode(list(TEXTS), prompt_name=prompts["passage"], task="document")
        if prompts["passage"]
        else model.encode_document(list(TEXTS)),
    }
    for kind, wanted in expected.items():
        found = encoder.encode(TEXTS, kind)
        assert found.shape[1] == encoder.dimension
        if model.similarity_fn_name == "cosine":
            np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
        else:
            np.testing.assert_allclose(found, wanted, atol=1e-5)
        # An inner product ranks as the model's own similarity does.
        np.testing.assert_allclose(found @ found.T, model.similarity(wanted, wanted).numpy(), rtol=1e-4, atol=1e-5)


def by_kind(full: float, sliding: float) -> dict[str, Any]:
    thetas = {"full_attention": full, "sliding_attention": sliding}
    return {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}}


# By layout: rotary positions as transformers 5 writes them, and the same as earlier versions did; others than defaults.
ROPE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3-embedding": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0}},
        {"rope_theta": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "embedding-gemma": (
        by_kind(50.0, 20.0),
        {"rope_theta": 50.0, "rope_local_base_freq": 20.0, "rope_scaling": None},
    ),
    "gte-modernbert": (by_kind(50.0, 20.0), {"global_rope_theta": 50.0, "local_rope_theta": 20.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROPE)
def test_rotary_positions_are_read_as_either_line_of_transformers_writes_them(
    name: str, base: Base, small_dataset: Dataset, tmp_path: Path
) -> None:
    written = json.loads((base(name) / "config.json").read_text())
    found = [Encoder.load(base(name), "cpu").encode(TEXTS)]
    for form, rope in zip(("newer", "older"), ROPE[name], strict=True):
        folder = shutil.copytree(base(name), tmp_path / form)
        config = {key: value for key, value in written.items() if "rope" not in key} | rope
        (folder / "config.json").write_text(json.dumps(config))
        encoder = Encoder.load(folder, "cpu")
        found.append(encoder.encode(TEXTS))
        # Also where the layers run in two parts.
        trainable = TrainableEncoder(encoder, small_dataset, 1, tmp_path / f"{form}-work")
        for parted, whole in zip(trainable.embed_all(), embed(encoder, small_dataset), strict=True):
            torch.testing.assert_close(parted, whole, rtol=0, atol=1e-5)
        write_model(encoder, tmp_path / f"{form}-model")
        assert (tmp_path / f"{form}-model" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
        np.testing.assert_allclose(Encoder.load(tmp_path / f"{form}-model", "cpu").encode(TEXTS), found[-1], atol=1e-6)
    default, newer, older = found
    np.testing.assert_allclose(older, newer, atol=1e-6)
    assert np.abs(newer - default).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "layers"),
    [
        *((name, torch.float32, 1) for name in LAYOUTS),
        *(pytest.param(name, dtype, 1, marks=pytest.mark.matrix) for name, dtype in itertools.product(LAYOUTS, HALF)),
        *(pytest.param(name, torch.float32, "all", marks=pytest.mark.matrix) for name in LAYOUTS),
        ("qwen3-embedding", torch.bfloat16, 1),
    ],
)
def test_a_training_without_learning_publishes_the_base_model(
    base: Base,
    small_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    dtype: torch.dtype,
    layers: Any,
) -> None:
    monkeypatch.setattr(training, "UNVALIDATED_LEARNING_RATE", 0.0)
    encoder, steps = Encoder.load(base(name, dtype), "cpu"), Steps()
    start, trainable = (
        embed(encoder, small_dataset),
        TrainableEncoder(encoder, small_dataset, layers, tmp_path / "work"),
    )
    assert trainable.cached == (layers != "all")
    rows = np.arange(len(small_dataset.question))
    training.train(trainable, small_dataset, rows, request(layers), start=start, listener=steps)
    assert steps.seen
    encoder.round_weights()
    write_model(encoder, tmp_path / "model")
    before, after = served(base(name, dtype)), served(tmp_path / "model")
    assert after.dtype == before.dtype == dtype
    assert after.max_seq_length == before.max_seq_length
    assert after.similarity_fn_name == before.similarity_fn_name
    assert (after.prompts, after.default_prompt_name) == (before.prompts, before.default_prompt_name)
    found = embeddings(after)
    for way, wanted in embeddings(before).items():
        torch.testing.assert_close(found[way], wanted, rtol=0, atol=1e-6, msg=f"{way!r} differs")
