"""The measured processes of the training benchmark: each prints one JSON object."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import torch
import typer

from benchmarks.retrieval import Sample, load
from benchmarks.sentence_transformers_recipe import Recipe, loaded, mined
from benchmarks.sentence_transformers_recipe import train as train_theirs
from streams.events import FineTuneRequested, Progress, now
from streams.knobs import DatasetKnobs, TrainingKnobs
from trainers.artifacts import write_model
from trainers.base_models import packaged_minilm_folder
from trainers.dataset import Dataset
from trainers.encoder import Encoder, has_bfloat16
from trainers.negatives import NegativeSource
from trainers.trained_layers import TrainedLayers
from trainers.training import train
from trainers.words import WordSets

# A matrix product of a layer is measured on so many tokens.
_TOKENS = 4096


def main(
    kind: str,
    data: Path,
    documents: Annotated[int, typer.Option(help="Of a mining run.")] = 10_000,
) -> None:
    """One run; ``data`` are rows for a training and a data set for mining."""
    if kind.endswith("_mining"):
        found = _mine(kind, data, documents)
    else:
        layers = None if kind.endswith("_all") else 2
        found = _ours(data, layers) if kind.startswith("ours") else _theirs(data, layers, bf16="tuned" in kind)
    sys.stdout.write(json.dumps(found) + "\n")


def _theirs(rows: Path, layers: int | None, *, bf16: bool) -> dict[str, float]:
    content = datasets.Dataset.from_json(str(rows))
    with tempfile.TemporaryDirectory() as folder:
        return {"seconds": train_theirs(packaged_minilm_folder(), content, Recipe(layers, bf16=bf16), Path(folder))}


def _ours(rows: Path, layers: int | None) -> dict[str, float]:
    dataset = _dataset([json.loads(line) for line in rows.read_text().splitlines()])
    request = FineTuneRequested(
        request_id="benchmark",
        model="benchmark",
        requested_at=now(),
        # The logs' own negatives come first, so all four are those that the other side has.
        dataset=DatasetKnobs(hard_negatives=4, easy_negatives=0, exclusion_threshold=1.0),
        training=TrainingKnobs(trainable_layers=layers or "all"),
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder.load(packaged_minilm_folder())
        trained = _Counted(encoder, dataset, request.training.trainable_layers, Path(folder))
        start = trained.embed_all()
        train(trained, dataset, np.arange(len(dataset.question)), request, start=start, observer=_Silent())
        write_model(encoder, packaged_minilm_folder(), Path(folder) / "model")
        seconds = time.perf_counter() - began
    gflops = _product_gflops(encoder)
    return {
        "seconds": seconds,
        "gemm_share": trained.flops / trained.seconds / 1e9 / gflops,
        "gemm_gflops": gflops,
        "step_seconds": trained.seconds / trained.steps,
    }


def _dataset(rows: list[dict[str, str]]) -> Dataset:
    questions: dict[str, int] = {}
    passages: dict[str, int] = {}
    pairs, shown = [], {}
    for row in rows:
        question = questions.setdefault(row["anchor"], len(questions))
        pairs.append((question, passages.setdefault(row["positive"], len(passages))))
        names = sorted(name for name in row if name.startswith("negative_"))
        shown[question] = tuple(passages.setdefault(row[name], len(passages)) for name in names)
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


class _Silent:
    def stepped(self, progress: Progress) -> None:
        """Nobody looks on."""


class _Counted(TrainedLayers):
    """Counts the arithmetic of the trained layers: forward, and twice as much backward."""

    flops, seconds, steps = 0.0, 0.0, 0

    def backward(self, questions: Any, passages: Any, loss_of: Any) -> tuple[float, float]:
        began = time.perf_counter()
        found = super().backward(questions, passages, loss_of)
        self.seconds += time.perf_counter() - began
        self.steps += 1
        lengths = self._tokens.lengths[np.concatenate([questions, passages + self._questions])]
        config = self._encoder.model.config
        layers = sum(parameter.ndim == 2 for parameter in self.parameters()) // 6
        hidden, inner = config.hidden_size, config.intermediate_size
        products = 2 * (4 * hidden * hidden + 2 * hidden * inner) * lengths.sum()
        attention = 4 * hidden * (lengths**2).sum()
        self.flops += 3.0 * layers * float(products + attention)
        return found


def _product_gflops(encoder: Encoder) -> float:
    """Plain products of a layer's shapes, in the format that its arithmetic has here."""
    hidden, inner = encoder.model.config.hidden_size, encoder.model.config.intermediate_size
    kind = torch.bfloat16 if has_bfloat16(encoder.device) else torch.float32
    pairs = [
        (torch.randn(_TOKENS, a).to(kind), torch.randn(a, b).to(kind))
        for a, b in [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
    ]
    best = 0.0
    for _ in range(20):
        began = time.perf_counter()
        for one, other in pairs:
            torch.mm(one, other)
        seconds = time.perf_counter() - began
        best = max(best, 2 * _TOKENS * (4 * hidden * hidden + 2 * hidden * inner) / seconds / 1e9)
    return best


def _mine(kind: str, data: Path, documents: int) -> dict[str, float]:
    benchmark = load(data, Sample(documents=documents))
    folder = packaged_minilm_folder()
    if kind == "st_mining":
        model = loaded(folder)
        before, began = _peak_mb(), time.perf_counter()
        mined(model, benchmark.train)
    else:
        encoder = Encoder.load(folder)
        before, began = _peak_mb(), time.perf_counter()
        with tempfile.TemporaryDirectory() as spill:
            vectors = TrainedLayers(encoder, benchmark.train, 2, Path(spill)).embed_all()
            dataset = benchmark.train
            source = NegativeSource(
                dataset, np.arange(len(dataset.question)), WordSets.of(dataset.passages), DatasetKnobs()
            )
            source.choose(*vectors, np.random.default_rng(0))
    return {"seconds": time.perf_counter() - began, "peak_mb": _peak_mb() - before}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
