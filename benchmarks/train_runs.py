"""The measured processes of the training benchmark: each prints one JSON object.

Trainings (``st``, ``st_tuned``, ``ours``, and with ``_all`` their likes of all layers) begin with the texts of rows
that sentence-transformers has mined, and end with a model on disk. ``st_mining`` and ``our_mining`` begin with texts of
a data set and end with the negatives of its questions, embeddings included. ``st_search`` and ``our_search`` do the
same for many passages whose embeddings are given: random ones, of passages put together of real paragraphs' halves.
Models are loaded before the clock of a mining starts; ours includes all exclusions.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import numpy.typing as npt
import psutil
import torch
import typer
from sentence_transformers import SentenceTransformer

from benchmarks.foldtune_recipe import SilentListener, request_of
from benchmarks.retrieval import Sample, lines, load
from benchmarks.sentence_transformers_recipe import HARD_NEGATIVES, TrainingConfig, load_model, mine_negatives
from benchmarks.sentence_transformers_recipe import train as train_theirs
from foldtune.events import Progress
from foldtune.knobs import DatasetKnobs
from trainers.data.dataset import Dataset
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import Negatives, NegativeSampler
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.loop.training import train
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder
from trainers.model.tokens import Indices, length_sorted_batches
from trainers.publishing.artifacts import write_model

EPOCHS = 3
BATCH_SIZE = 32
# MiniLM's.
_DIMENSION = 384
Vectors = tuple[torch.Tensor, torch.Tensor]


def main(
    kind: str,
    data: Path,
    documents: Annotated[int, typer.Option(help="Of a mining.")] = 5_000,
    passages: Annotated[int, typer.Option(help="Of a search.")] = 100_000,
    questions: Annotated[int, typer.Option(help="Of a mining or a search.")] = 10_000,
) -> None:
    """One run; ``data`` are rows for a training, and a data set for the others."""
    theirs = kind.startswith("st")
    if kind.endswith("_mining"):
        found = _mine(load(data, Sample(train=questions, examples=questions, documents=documents)).train, theirs=theirs)
    elif kind.endswith("_search"):
        found = _mine(_large(data, passages, questions), theirs=theirs, given=True)
    else:
        layers = None if kind.endswith("_all") else 2
        found = _theirs(data, layers, autocast="tuned" in kind) if theirs else _ours(data, layers)
    sys.stdout.write(json.dumps(found) + "\n")


def _theirs(rows: Path, layers: int | None, *, autocast: bool) -> dict[str, float]:
    content = datasets.Dataset.from_json(str(rows))
    # Both sides are to see the same number of rows.
    config = TrainingConfig(layers, epochs=EPOCHS, batch_size=BATCH_SIZE, autocast=autocast, no_duplicates=False)
    with tempfile.TemporaryDirectory() as folder:
        before = _cpu_seconds()
        trained = train_theirs(packaged_minilm_folder(), content, config, Path(folder))
    return {
        "seconds": trained.seconds,
        "cpu_seconds": _cpu_seconds() - before,
        "steps": trained.steps,
        "rows": trained.rows,
        "parameters": trained.parameters,
    }


def _ours(path: Path, layers: int | None) -> dict[str, float]:
    dataset = _dataset([json.loads(line) for line in path.read_text().splitlines()])
    rows = np.arange(len(dataset.question))
    # The logs' own negatives come first, so both sides train with the same four.
    request = request_of(
        0,
        {
            "dataset": {"hard_negatives": HARD_NEGATIVES, "easy_negatives": 0, "exclusion_threshold": 1.0},
            "training": {"trainable_layers": layers or "all", "epochs": EPOCHS, "batch_size": BATCH_SIZE},
        },
    )
    # Neither side mines: mined negatives would come after the given ones.
    no_embeddings = torch.zeros(len(dataset.questions), 1), torch.zeros(len(dataset.passages), 1)
    _check_negatives(dataset, _choose_negatives(dataset, request.dataset, no_embeddings).passages)
    before, began = _cpu_seconds(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder.load(packaged_minilm_folder())
        measured = _MeasuredEncoder(encoder, dataset, request.training.trainable_layers, Path(folder))
        timer = _StepTimer(measured)
        record = train(measured, dataset, rows, request, start=no_embeddings, listener=timer)
        write_model(encoder, packaged_minilm_folder(), Path(folder) / "model")
        seconds = time.perf_counter() - began - timer.overhead
    # In the first epoch, the frozen layers run as well.
    warm = len(record.losses) // EPOCHS
    rates, plain = np.array(timer.rates[warm:]), np.array(timer.plain_rates[warm:])
    return {
        "seconds": seconds,
        "cpu_seconds": _cpu_seconds() - before - timer.overhead_cpu,
        "steps": len(record.losses),
        "rows": EPOCHS * len(rows),
        "parameters": sum(parameter.numel() for parameter in measured.parameters()),
        "step_seconds": float(np.median(timer.seconds[warm:])),
        "gemm_share": float(np.median(rates / plain)),
        "gemm_gflops": float(np.median(plain)) / 1e9,
    }


def _check_negatives(dataset: Dataset, chosen: npt.NDArray[np.int64]) -> None:
    given = np.array([dataset.impressions[question] for question in dataset.question])
    if not np.array_equal(given, chosen):
        differing = int((given != chosen).any(axis=1).sum())
        raise ValueError(f"{differing} of {len(given)} rows would be trained with other negatives")


def _dataset(rows: list[dict[str, str]], others: Sequence[str] = ()) -> Dataset:
    """Each row is an example; its own negatives, if it has any, are what was shown to its question."""
    questions: dict[str, int] = {}
    passages: dict[str, int] = {}
    pairs, shown = [], {}
    for row in rows:
        question = questions.setdefault(row["anchor"], len(questions))
        pairs.append((question, passages.setdefault(row["positive"], len(passages))))
        names = sorted(name for name in row if name.startswith("negative_"))
        shown[question] = tuple(passages.setdefault(row[name], len(passages)) for name in names)
    for text in others:
        passages.setdefault(text, len(passages))
    keys = np.array(pairs, dtype=np.int64)
    return Dataset(
        questions=tuple(questions),
        groups=np.arange(len(questions)),
        passages=tuple(passages),
        documents=len(passages),
        searchable=len(passages),
        question=keys[:, 0],
        positive=keys[:, 1],
        strength=np.ones(len(pairs), dtype=np.float32),
        judged=np.zeros(len(pairs), dtype=np.bool_),
        impressions=tuple(shown[number] for number in range(len(questions))),
        known_positives=np.unique(keys[:, 0] * len(passages) + keys[:, 1]),
    )


class _MeasuredEncoder(TrainableEncoder):
    """Counts the arithmetic of the trained layers in a step: forward, and twice as much backward."""

    began, flops = 0.0, 0.0
    parts: tuple[int, ...] = ()

    def embed_batch(self, questions: Indices, passages: Indices) -> torch.Tensor:
        self.began = time.perf_counter()
        lengths = self._tokens.lengths[np.concatenate([questions, passages + self._questions])]
        config = self._encoder.model.config
        matrices = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
        # In each head's size they would be the same: of queries with keys, and of their weights with values.
        attention = 4 * config.hidden_size * (lengths**2).sum()
        layers = sum(name.endswith("attention.self.query.weight") for name in self._trained_names())
        self.flops = 3.0 * layers * float(2 * matrices * lengths.sum() + attention)
        # As they are embedded: texts of about the same length side by side.
        self.parts = tuple(
            len(part) * int(lengths[part].max()) for part in length_sorted_batches(lengths, self._encoder.batch_tokens)
        )
        return super().embed_batch(questions, passages)

    def _trained_names(self) -> list[str]:
        return [name for name, parameter in self._encoder.model.named_parameters() if parameter.requires_grad]

    def _synchronize(self) -> None:
        """Wait until a GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def plain_product(self) -> float:
        """Floating-point operations a second of plain products in the shapes of one layer and of the last step."""
        config, kind = self._encoder.model.config, self.compute_dtype
        hidden, inner = config.hidden_size, config.intermediate_size
        shapes = [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
        products = [
            tuple(torch.randn(shape, dtype=kind, device=self.device) for shape in ((tokens, a), (a, b)))
            for tokens in self.parts
            for a, b in shapes
        ]
        self._synchronize()
        began = time.perf_counter()
        for left, right in products:
            torch.mm(left, right)
        self._synchronize()
        seconds = time.perf_counter() - began
        return sum(2.0 * len(left) * right.numel() for left, right in products) / seconds


class _StepTimer(SilentListener):
    """Times each step, and plain matrix products after it, so that a noisy machine disturbs both alike."""

    def __init__(self, encoder: _MeasuredEncoder) -> None:
        self._encoder = encoder
        self.seconds: list[float] = []
        self.rates: list[float] = []
        self.plain_rates: list[float] = []
        self.overhead = self.overhead_cpu = 0.0

    def on_step(self, _: Progress) -> None:
        ended, cpu = time.perf_counter(), _cpu_seconds()
        self.seconds.append(ended - self._encoder.began)
        self.rates.append(self._encoder.flops / self.seconds[-1])
        self.plain_rates.append(self._encoder.plain_product())
        self.overhead += time.perf_counter() - ended
        self.overhead_cpu += _cpu_seconds() - cpu


def _mine(dataset: Dataset, *, theirs: bool, given: bool = False) -> dict[str, float]:
    folder = packaged_minilm_folder()
    model: Any = load_model(folder) if theirs else Encoder.load(folder)
    memory = _PeakMemory()
    vectors = _random_vectors(dataset) if given else None
    cpu, began = _cpu_seconds(), time.perf_counter()
    found = _mine_theirs(model, dataset, vectors) if theirs else _mine_ours(model, dataset, vectors)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": _cpu_seconds() - cpu,
        "peak_mb": memory.grown_mb(),
        "questions": len(dataset.questions),
        "passages": len(dataset.passages),
        "negatives": found,
    }


def _mine_theirs(model: SentenceTransformer, dataset: Dataset, vectors: Vectors | None) -> int:
    if vectors:
        queries, passages = (one.numpy() for one in vectors)
        stand_in: Any = model
        stand_in.encode_query = lambda texts, **_: _as_given(queries, texts, dataset.questions)
        stand_in.encode_document = lambda texts, **_: _as_given(passages, texts, dataset.passages)
    return HARD_NEGATIVES * len(mine_negatives(model, dataset))


def _as_given(vectors: npt.NDArray[np.float32], texts: list[str], known: Sequence[str]) -> npt.NDArray[np.float32]:
    if texts != list(known):
        raise ValueError("the other side would embed other texts, or in another order")
    return vectors


def _mine_ours(encoder: Encoder, dataset: Dataset, vectors: Vectors | None) -> int:
    with tempfile.TemporaryDirectory() as spill:
        vectors = vectors or TrainableEncoder(encoder, dataset, 2, Path(spill)).embed_all()
        return _choose_negatives(dataset, DatasetKnobs(), vectors).counts["hard_impressions_and_mined"]


def _choose_negatives(dataset: Dataset, knobs: DatasetKnobs, vectors: Vectors) -> Negatives:
    source = NegativeSampler(dataset, np.arange(len(dataset.question)), WordSets.of(dataset.passages), knobs)
    return source.with_easy(source.hard(*vectors), np.random.default_rng(0))


def _large(data: Path, passages: int, questions: int) -> Dataset:
    """Real questions, each with a passage, and other passages: one paragraph's first half and another's last."""
    words = [one["text"].split() for one in lines(data / "documents.jsonl.gz")]
    texts: dict[str, None] = {}
    for shift in range(len(words)):
        for place, first in enumerate(words):
            last = words[(place + shift) % len(words)]
            texts[" ".join(first[: len(first) // 2] + last[len(last) // 2 :])] = None
            if len(texts) == passages:
                break
        if len(texts) == passages:
            break
    asked = list(dict.fromkeys(one["question"] for one in lines(data / "questions.jsonl.gz")))[:questions]
    made = list(texts)
    return _dataset([{"anchor": a, "positive": b} for a, b in zip(asked, made, strict=False)], made)


def _random_vectors(dataset: Dataset) -> Vectors:
    """Unit vectors; a question's has a cosine of about .7 with its positive's, and of about 0 with all others."""
    generator = torch.Generator().manual_seed(0)
    passages = torch.nn.functional.normalize(torch.randn(len(dataset.passages), _DIMENSION, generator=generator), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(len(dataset.questions), _DIMENSION, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(passages[torch.from_numpy(dataset.positive)] + noise, dim=1)
    return queries, passages


class _PeakMemory:
    """How far this process's main memory has grown at its peak since now."""

    def __init__(self) -> None:
        self._before = psutil.Process().memory_info().rss
        # Forgets the peaks of what was before.
        Path("/proc/self/clear_refs").write_text("5")

    def grown_mb(self) -> float:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024 - self._before / 1024**2


def _cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    typer.run(main)
