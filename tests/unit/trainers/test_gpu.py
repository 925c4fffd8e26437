"""What differs on a GPU: number format, where states are kept, copies. ``make gpu-check`` runs them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foldtune.knobs import DatasetKnobs
from foldtune.testing import MemoryObjectStore
from tests.jobs import RecordingEventSink
from tests.layouts import LAYOUTS
from tests.unit.trainers.conftest import use_compute_dtype
from tests.unit.trainers.job_of_ranks import AskedToEnd, job_in, losses, settings_for
from tests.unit.trainers.loop.test_training import Steps, request
from trainers.data.dataset import Dataset, split
from trainers.data.negatives import nearest_below_margin
from trainers.engine.prefix_cache import PrefixCache
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.evaluation.evaluation_set import embed
from trainers.evaluation.metrics import evaluate
from trainers.exit_codes import ExitCode
from trainers.job import run
from trainers.loop.training import train
from trainers.model.encoder import Encoder, TextKind
from trainers.model.split_model import freeze, split_model
from trainers.publishing.artifacts import write_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

GPU = "cuda"


def trained_losses(device: str, folder: Path, dataset: Dataset, tmp_path: Path, **options: Any) -> list[float]:
    encoder = Encoder.load(folder, device)
    start = embed(encoder, dataset)
    trainable = TrainableEncoder(encoder, dataset, 2, tmp_path, **options)
    # Easy negatives alone are the same on every device; mined ones may change places where scores are near.
    asked = request(layers=2).model_copy(update={"dataset": DatasetKnobs(hard_negatives=0, easy_negatives=3)})
    return train(trainable, dataset, np.arange(len(dataset.question)), asked, start=start, listener=Steps()).losses


@pytest.mark.parametrize("options", [{}, {"cached": False}, {"graph_budget": 0}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_equal_those_of_the_cpu(
    tiny_folder: Path,
    small_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    dtype: torch.dtype,
    options: Any,
) -> None:
    use_compute_dtype(monkeypatch, dtype)
    found = trained_losses(GPU, tiny_folder, small_dataset, tmp_path, **options)
    use_compute_dtype(monkeypatch, torch.float32)
    expected = trained_losses("cpu", tiny_folder, small_dataset, tmp_path)
    # bfloat16 has three digits, and similarities are divided by a temperature of 0.05: on a CPU they differ by 0.03.
    assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.usefixtures("full_precision")
def test_float32_losses_equal_those_of_the_cpu(tiny_folder: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    found = trained_losses(GPU, tiny_folder, small_dataset, tmp_path)
    assert found == pytest.approx(trained_losses("cpu", tiny_folder, small_dataset, tmp_path), abs=1e-3)


@pytest.mark.parametrize(
    "name", ["embedding-gemma", "gte-modernbert", "instructor", "mpnet", "qwen3-embedding", "router"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_losses_of_other_layouts_equal_those_of_the_cpu(
    small_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    folder = LAYOUTS[name](tmp_path / "model")
    use_compute_dtype(monkeypatch, dtype)
    found = trained_losses(GPU, folder, small_dataset, tmp_path)
    use_compute_dtype(monkeypatch, torch.float32)
    assert found == pytest.approx(trained_losses("cpu", folder, small_dataset, tmp_path), abs=tolerance)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_model_that_was_trained_there_is_read_on_a_cpu(
    small_dataset: Dataset, tmp_path: Path, precision: torch.dtype
) -> None:
    encoder = Encoder.load(LAYOUTS["router"](tmp_path / "base", dtype=precision), GPU)
    trainable = TrainableEncoder(encoder, small_dataset, 2, tmp_path)
    rows = np.arange(len(small_dataset.question))
    start = trainable.embed_full_length()
    train(trainable, small_dataset, rows, request(layers=2), start=start, listener=Steps())
    encoder.round_weights()
    write_model(encoder, tmp_path / "published")
    published = Encoder.load(tmp_path / "published", "cpu")
    assert published.precision == precision
    assert {tensor.device.type for tensor in encoder.model.state_dict().values()} == {torch.device(GPU).type}
    texts: dict[TextKind, tuple[str, ...]] = {"query": small_dataset.questions, "passage": small_dataset.passages}
    for kind, given in texts.items():
        one, other = encoder.encode(given, kind), published.encode(given, kind)
        assert np.einsum("td,td->t", one, other).min() > 0.999


def test_mining_finds_the_negatives_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, passages = (
        torch.nn.functional.normalize(torch.randn(rows, 32, generator=generator, dtype=torch.float64), dim=1)
        for rows in (50, 3000)
    )
    bound = np.full(50, 0.5, dtype=np.float32)
    expected = nearest_below_margin(queries, passages, bound, 20)
    found = nearest_below_margin(queries.to(GPU), passages.to(GPU), bound, 20)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1] > 0


@pytest.mark.parametrize(
    ("step", "dtype", "layers"),
    [
        (2, torch.bfloat16, 2),
        (11, torch.bfloat16, 2),
        (2, torch.float16, 2),
        (11, torch.bfloat16, "all"),
        (11, torch.float16, "all"),
    ],
)
def test_an_interrupted_job_resumes(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    step: int,
    dtype: torch.dtype,
    layers: Any,
) -> None:
    use_compute_dtype(monkeypatch, dtype)
    monkeypatch.setattr("trainers.publishing.reporting.REPORT_SECONDS", -1)
    stores = MemoryObjectStore(), MemoryObjectStore()
    settings = settings_for(tiny_folder, tmp_path)
    jobs = [job_in(store, tiny_folder, layers) for store in stores]
    assert run(jobs[0], settings, stores[0], RecordingEventSink()) == ExitCode.DONE
    assert run(jobs[1], settings, stores[1], AskedToEnd(step)) == ExitCode.TRY_AGAIN
    assert stores[1].list("checkpoints/")
    again = RecordingEventSink()
    assert run(jobs[1], settings, stores[1], again) == ExitCode.DONE
    assert min(status.progress.step for status in again.statuses if status.progress) == step + 1
    # Not bit by bit: attention's way back adds up in any order.
    assert losses(stores[1]) == pytest.approx(losses(stores[0]), abs=0.02)


def test_hidden_states_are_the_same_on_the_gpu_in_memory_and_in_a_file(tiny_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_folder, GPU)
    tokens = encoder.tokenize(["one", "two words", ""])
    freeze(encoder.transformer, 1)
    split = split_model(encoder.transformer, 1)
    assert split is not None
    found = []
    for budgets in ({}, {"device_budget": 0}, {"device_budget": 0, "memory_budget": 0}):
        cache = PrefixCache(encoder, split.prefix, tokens, tmp_path, **budgets)
        assert cache.spilled == ("memory_budget" in budgets)
        found.append(cache.states(np.array([2, 0, 1])))
    for states, mask in found[1:]:
        assert states.device.type == GPU
        assert torch.equal(states, found[0][0])
        assert torch.equal(mask, found[0][1])


def test_embeddings_and_metrics_equal_those_of_the_cpu(
    tiny_folder: Path, small_dataset: Dataset, record_property: Callable[[str, object], None]
) -> None:
    parts = split(small_dataset)
    vectors = {device: embed(Encoder.load(tiny_folder, device), small_dataset) for device in (GPU, "cpu")}
    for one, other in zip(vectors[GPU], vectors["cpu"], strict=True):
        assert (one.cpu() * other).sum(dim=1).min() > 0.999
    ndcg = []
    for queries, passages in (vectors[GPU], vectors["cpu"]):
        held_out = torch.from_numpy(parts.held_out).to(queries.device)
        ndcg.append(evaluate(small_dataset, parts.held_out, queries[held_out], passages).ndcg.mean())
    assert ndcg[0] == pytest.approx(ndcg[1], abs=0.05)
    encoder, texts = Encoder.load(tiny_folder, GPU), ["some words of a text " * 10] * 20_000
    encoder.encode(texts[:100])
    began = time.perf_counter()
    assert np.isfinite(encoder.encode(texts)).all()
    record_property("texts_per_second", round(len(texts) / (time.perf_counter() - began)))
