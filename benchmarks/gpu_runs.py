"""The measured processes of ``benchmarks/gpu_check.py``; each line of output is one JSON object, the last one wins.

- ``layout NAME FOLDER``: a model of random weights in that layout is made, trained and measured, and a job of it is
  interrupted and resumed.
- ``job FOLDER``: that job once more, in the process group of a trainer, as torchrun starts it.

Time is taken from one step's end to the next, after the device has finished it. ``share_of_peak`` is the rate of the
operations that the trained layers need, forward and backward, without padding and without what is computed twice, ÷
that of one large plain matrix product; ``gemm_share`` is the same ÷ that of products in the shapes of a layer.
"""

import gc
import json
import logging
import os
import platform
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import sentence_transformers
import structlog
import torch
import transformers
import typer
from safetensors import safe_open
from safetensors.torch import load
from torch import distributed, nn
from transformers import BertConfig

from benchmarks.foldtune_recipe import create_request
from foldtune.events import FineTuneStatus, ModelReference, Progress, TrainingJob
from foldtune.settings import Settings, TrainerSettings
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from foldtune.testing import MemoryObjectStore
from tests.jobs import RecordingEventSink, artifact, put_job
from tests.models import write_modules, write_transformer
from tests.runbooks import NOW
from trainers.data.dataset import Dataset, build_dataset
from trainers.engine import ranks
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.exit_codes import ExitCode
from trainers.job import run
from trainers.loop.training import train
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder, compute_dtype, default_device
from trainers.model.tokens import Indices
from trainers.publishing import reporting

# all-MiniLM-L6-v2 (22 million parameters) and bge-large (335 million).
LAYOUTS: dict[str, dict[str, Any]] = {
    "minilm": {"sizes": (384, 6, 12, 1536), "max_seq_length": 256},
    "bge-large": {
        "sizes": (1024, 24, 16, 4096),
        "max_seq_length": 512,
        "pooling": "cls",
        "prompts": {"query": "Represent this sentence for searching relevant passages: "},
    },
}
# On a CPU only this script is tried.
_SMALL = (48, 3, 4, 64)
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# Trained layers and examples a step: the defaults, more of a card's memory, and all layers.
_TRAININGS: dict[str, tuple[tuple[int | str, int], ...]] = {
    "cuda": ((2, 32), (2, 256), ("all", 32), ("all", 256)),
    "cpu": ((2, 8), ("all", 8)),
}
# Questions of the trainings, and of the job that is resumed.
_QUESTIONS = {"cuda": (2_048, 400), "cpu": (64, 40)}
# Of the time, the rest is for loading and for resuming.
_TRAINING_SHARE = 0.6
# Two trainings of the same data on a GPU differ, since attention's backward pass adds up in any order. Of a loss; or
# twice what two uninterrupted ones differ, if that is more.
_TOLERANCE = 0.02
_STOPPED_AFTER = 11

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("layout")
def measure_layout(
    name: str, folder: Path, seconds: Annotated[float, typer.Option(help="Bound for the trainings.")] = 110
) -> None:
    """Make a model, train it for a while with each setting, then interrupt and resume a job of it."""
    began = time.monotonic()
    device = default_device()
    _write({"device": _device(device)})
    model, parameters = _make_model(name, folder / name, small=device.type == "cpu")
    result: dict[str, Any] = {"parameters": parameters, "peak_tflops": _peak(device) / 1e12}
    dataset, trainings = build_dataset(*_tables(_QUESTIONS[device.type][0])), _TRAININGS[device.type]
    for number, (layers, batch_size) in enumerate(trainings):
        left = began + _TRAINING_SHARE * seconds - time.monotonic()
        key = f"layers_{layers}_batch_{batch_size}"
        try:
            result[key] = _train(model, dataset, layers, batch_size, max(0.5, left / (len(trainings) - number)))
        except torch.OutOfMemoryError as error:
            result[key] = {"error": str(error)}
        _write({name: result})
    result["resumed"] = _resume(name, model, folder / name)
    _write({name: result | {"seconds": time.monotonic() - began}})


@app.command("job")
def run_one_job(name: str, folder: Path) -> None:
    """Run the job of a measured layout in a process group, as ``trainers.job`` does, and compare its losses."""
    expected = json.loads((folder / name / "resumed.json").read_text())
    began, device = time.monotonic(), default_device()
    # Which the trainer does with several processes only.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    total = torch.ones(1, device=device)
    distributed.all_reduce(total)
    losses, _, _ = _run_job(name, folder / name / "model", folder)
    ranks.destroy_process_group()
    difference = _largest_difference(losses, expected["losses"])
    _write(
        {
            "torchrun": {
                "processes": int(total),
                "backend": "nccl" if device.type == "cuda" else "gloo",
                "largest_difference": difference,
                "equal": difference <= expected["tolerance"],
                "seconds": time.monotonic() - began,
            }
        }
    )


def _write(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def _device(device: torch.device) -> dict[str, Any]:
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
    }
    if device.type == "cpu":
        return {"name": platform.processor() or platform.machine(), "type": "cpu", "versions": versions}
    card: Any = torch.cuda.get_device_properties(device)
    return {
        "name": card.name,
        "type": "cuda",
        "memory_gib": card.total_memory / 1024**3,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "versions": versions | {"cuda": torch.version.cuda},
    }


def _make_model(name: str, folder: Path, *, small: bool) -> tuple[Path, int]:
    """A folder as sentence-transformers has it, with random weights and MiniLM's tokenizer; and their number."""
    options = dict(LAYOUTS[name])
    sizes = options.pop("sizes")
    config = BertConfig(**dict(zip(_SIZES, _SMALL if small else sizes, strict=True)))
    model = write_transformer(folder / "model", config, packaged_minilm_folder())
    write_modules(model, dimension=config.hidden_size, **options)
    with safe_open(model / "model.safetensors", framework="pt") as file:
        return model, sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def _tables(questions: int) -> tuple[pa.Table, pa.Table]:
    """A document for each question, of 60 to 200 words, and four words of it in the question among others."""
    vocabulary = (packaged_minilm_folder() / "vocab.txt").read_text().splitlines()
    words = np.array([word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 3])
    generator = np.random.default_rng(0)
    documents, examples = [], []
    for number in range(questions):
        name = f"document-{number}"
        text = generator.choice(words, generator.integers(60, 200))
        documents.append({"folder_id": "f", "document_id": name, "title": "", "text": " ".join(text)})
        asked = np.concatenate([generator.choice(text[:40], 6), generator.choice(words, 6)])
        examples.append(
            {
                "log_id": str(number),
                "occurred_at": NOW,
                "folder_id": "f",
                "agent_id": "a",
                "conversation_id": None,
                "question": " ".join(asked),
                "positive": {"folder_id": "f", "document_id": name, "text": None},
                "label": "cited",
                "strength": 1.0,
                "negatives": [],
            }
        )
    return pa.Table.from_pylist(examples, EXAMPLES), pa.Table.from_pylist(documents, DOCUMENTS)


class _TimeUpError(Exception):
    """The time for a training is over."""


class _MeasuredEncoder(TrainableEncoder):
    """Notes when a step began, and the tokens of each of its texts."""

    began = 0.0
    step_lengths: Indices = np.empty(0, dtype=np.int64)

    def embed_batch(self, questions: Indices, passages: Indices) -> torch.Tensor:
        self.step_lengths = self._tokens.lengths[self._texts(questions, passages)]
        self.began = time.perf_counter()
        return super().embed_batch(questions, passages)


class _Clock:
    """Listens to a training, and ends it after ``seconds``, but not before the third step."""

    def __init__(self, encoder: _MeasuredEncoder, seconds: float, operations: Callable[[Indices], float]) -> None:
        self._encoder, self._operations = encoder, operations
        self._ends = time.perf_counter() + seconds
        self._last = time.perf_counter()
        self.steps: list[dict[str, float]] = []

    def on_step(self, _: Progress) -> None:
        now, lengths = time.perf_counter(), self._encoder.step_lengths
        self.steps.append(
            {
                "seconds": now - self._encoder.began,
                "with_data": now - self._last,
                "tokens": float(lengths.sum()),
                "texts": len(lengths),
                "operations": self._operations(lengths),
            }
        )
        self._last = now
        if now > self._ends and len(self.steps) >= 3:
            raise _TimeUpError


def _train(model: Path, dataset: Dataset, layers: int | str, batch_size: int, seconds: float) -> dict[str, Any]:
    """Steps of a training, medians after the first two; all texts have passed the frozen layers before."""
    began = time.perf_counter()
    request = create_request(0, {"training": {"trainable_layers": layers, "batch_size": batch_size, "epochs": 20}})
    with tempfile.TemporaryDirectory() as spill:
        encoder = Encoder.load(model)
        _reset_memory(encoder.device)
        trainable = _MeasuredEncoder(encoder, dataset, layers, Path(spill))
        loaded = time.perf_counter()
        start = trainable.embed_full_length()
        float(start[0].sum())
        embedded = time.perf_counter()
        if trainable.cached:
            trainable.embed_all()
        clock = _Clock(trainable, seconds - (time.perf_counter() - began), _operations(encoder))
        with suppress(_TimeUpError):
            train(trainable, dataset, np.arange(len(dataset.question)), request, start=start, listener=clock)
        steps = clock.steps[2:] or clock.steps
        middle = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
        rate = statistics.median(step["operations"] / step["seconds"] for step in steps)
        peak, gemm = _peak(encoder.device), _layer_rate(encoder, int(middle["tokens"]))
        return {
            "dtype": str(encoder.compute_dtype).removeprefix("torch."),
            "cached": trainable.cached,
            "max_tokens": trainable.max_tokens,
            "steps": len(clock.steps),
            "step_ms": 1e3 * middle["seconds"],
            "step_ms_90th": 1e3 * float(np.quantile([step["seconds"] for step in steps], 0.9)),
            "step_ms_with_data": 1e3 * middle["with_data"],
            "texts_per_step": middle["texts"],
            "tokens_per_second": statistics.median(step["tokens"] / step["seconds"] for step in steps),
            "examples_per_second": batch_size / middle["with_data"],
            "tflops": rate / 1e12,
            "share_of_peak": rate / peak,
            "gemm_share": rate / gemm,
            "peak_memory_gib": _peak_memory(encoder.device) / 1024**3,
            "load_seconds": loaded - began,
            "embedded_texts_per_second": (len(dataset.questions) + len(dataset.passages)) / (embedded - loaded),
        }


def _operations(encoder: Encoder) -> Callable[[Indices], float]:
    """Of a step's texts of some lengths in the trained layers: two for each weight and token, and attention's.

    The backward pass takes twice as many as the forward pass.
    """
    config = encoder.transformer.config
    linear = [module.weight for module in encoder.transformer.modules() if isinstance(module, nn.Linear)]
    trained = [weight for weight in linear if weight.requires_grad]
    layers = round(len(trained) * config.num_hidden_layers / len(linear))
    weights = sum(weight.numel() for weight in trained)
    # Queries by keys and attention weights by values; independent of the number of heads.
    return lambda lengths: (
        3.0 * float(2 * weights * lengths.sum() + 4 * layers * config.hidden_size * (lengths**2).sum())
    )


def _peak(device: torch.device) -> float:
    """Operations a second of one large matrix product on random data."""
    size = 8192 if device.type == "cuda" else 512
    return _product_rate(device, compute_dtype(device, "bert"), size, size, size)


def _layer_rate(encoder: Encoder, tokens: int) -> float:
    """The same for the products of one layer with the tokens of a step."""
    config, device = encoder.transformer.config, encoder.device
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
    tokens = min(tokens, encoder.batch_tokens)
    rates = {(a, b): _product_rate(device, encoder.compute_dtype, tokens, a, b) for a, b in {*shapes}}
    return float(sum(a * b for a, b in shapes) / sum(a * b / rates[a, b] for a, b in shapes))


def _product_rate(device: torch.device, dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
    left, right = (torch.randn(shape, dtype=dtype, device=device) for shape in ((rows, inner), (inner, columns)))
    seconds = []
    for _ in range(8):
        _synchronize(device)
        began = time.perf_counter()
        for _ in range(3):
            torch.mm(left, right)
        _synchronize(device)
        seconds.append((time.perf_counter() - began) / 3)
    return 2.0 * rows * inner * columns / statistics.median(seconds[2:])


def _synchronize(device: torch.device) -> None:
    """Wait for the kernels of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> int:
    """In bytes: on a GPU what torch has reserved there, on a CPU this process's, which includes what ran before."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _StoppedSink(RecordingEventSink):
    """Asks this process to end after step ``stop``, as AWS Batch and Kubernetes do."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self._stop = stop

    def publish_status(self, status: FineTuneStatus) -> None:
        super().publish_status(status)
        if status.progress and status.progress.step == self._stop:
            os.kill(os.getpid(), signal.SIGTERM)


def _resume(name: str, model: Path, folder: Path) -> dict[str, Any]:
    """A job, the same job again, and the same job interrupted and resumed: how far their losses and weights differ."""
    losses, weights, seconds = _run_job(name, model, folder)
    differences = {}
    for kind, stop in (("again", 0), ("resumed", _STOPPED_AFTER)):
        other_losses, other, _ = _run_job(name, model, folder, stop)
        squares = sum(float((other[key] - tensor).square().sum()) for key, tensor in weights.items())
        differences[kind] = {
            "loss": _largest_difference(other_losses, losses),
            "weights": (squares / sum(float(tensor.square().sum()) for tensor in weights.values())) ** 0.5,
        }
    tolerance = max(_TOLERANCE, 2 * differences["again"]["loss"])
    (folder / "resumed.json").write_text(json.dumps({"losses": losses, "tolerance": tolerance}))
    return {
        "steps": len(losses),
        "stopped_after": _STOPPED_AFTER,
        "first_and_last_loss": [losses[0], losses[-1]],
        # Between two uninterrupted runs, and between such a one and the resumed one.
        "difference": differences,
        "tolerance": tolerance,
        "equal": differences["resumed"]["loss"] <= tolerance,
        "job_seconds": seconds,
    }


def _largest_difference(losses: list[float], others: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(losses, others, strict=True))


def _run_job(
    name: str, model: Path, folder: Path, stop: int = 0
) -> tuple[list[float], dict[str, torch.Tensor], dict[str, float]]:
    """The losses, the weights and the seconds of a job, with ``stop`` of one that is interrupted after that step."""
    store = MemoryObjectStore()
    # All layers of the smaller model: the optimizer's state is three times its size.
    layers: int | str = "all" if name == "minilm" else 2
    questions = _QUESTIONS[default_device().type][1]
    job = put_job(
        store,
        _tables(questions),
        base_model=ModelReference(uri=model.as_uri()),
        training={"trainable_layers": layers, "epochs": 3, "batch_size": questions // 10},
    )
    settings = Settings(
        trainer=TrainerSettings(model_folders=(model,), work_dir=folder, checkpoint_interval=timedelta(hours=1))
    )
    if stop:
        _expect(job, settings, store, _StoppedSink(stop), ExitCode.TRY_AGAIN)
    _expect(job, settings, store, RecordingEventSink(), ExitCode.DONE)
    losses: list[float] = json.loads(artifact(store, "training.json"))["loss"]
    seconds: dict[str, float] = json.loads(artifact(store, "metrics.json"))["seconds"]
    return losses, load(artifact(store, "model.safetensors")), seconds


def _expect(
    job: TrainingJob, settings: Settings, store: MemoryObjectStore, sink: RecordingEventSink, code: int
) -> None:
    found = run(job, settings, store, sink)
    if found != code:
        raise RuntimeError(f"the job ended with {found!r} and not {code!r}: {sink.statuses[-1].reasons}")


if __name__ == "__main__":
    # Standard output is for the results.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # Each step is reported, so that a job is stopped after one that is given.
    reporting.REPORT_SECONDS = -1
    app()
