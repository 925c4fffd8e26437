"""What each knob is worth on a data set: one training for each of its values, with all other knobs at their defaults
or at what ``--knobs`` says.

A folder in the format of ``benchmarks/retrieval.py``; trained is as in ``benchmarks/quality.py``. Compared are nDCG@10
on the questions of ``dev``, texts cut to 128 tokens, paired with those of the defaults. Embeddings of the base model
are made once, and what the frozen layers compute once for each number of trained layers.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.foldtune_recipe import SilentListener, parts_of, request_of
from benchmarks.quality import difference, with_allocator
from benchmarks.retrieval import Benchmark, Sample, load
from foldtune.events import FineTuneRequested
from trainers.engine.trainable_encoder import TRAINING_TOKENS, TrainableEncoder
from trainers.evaluation.metrics import Evaluation, evaluate
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder
from trainers.model.tokens import Indices
from trainers.pipeline import fit

Knobs = dict[str, dict[str, Any]]

VALUES: tuple[tuple[str, Knobs], ...] = (
    *(
        (f"focus {focus}, minimum {minimum}", {"weights": {"focus": focus, "minimum": minimum}})
        for focus in (0.5, 1.0, 2.0)
        for minimum in (0.0, 0.1)
    ),
    *((f"temperature {value}", {"weights": {"temperature": value}}) for value in (0.02, 0.05, 0.1)),
    # At 1, only passages of the very same words are excluded.
    *((f"exclusion {value}", {"dataset": {"exclusion_threshold": value}}) for value in (0.3, 0.5, 0.8, 1.0)),
    *((f"layers {value}", {"training": {"trainable_layers": value}}) for value in (1, 2, 4, "all")),
    *((f"hard negatives {value}", {"dataset": {"hard_negatives": value}}) for value in (0, 4, 8)),
)


@dataclass(frozen=True)
class Variant:
    """A training to be done; ``dropout`` is no knob."""

    name: str
    request: FineTuneRequested
    dropout: bool = False


class _DropoutEncoder(TrainableEncoder):
    """With ``dropout``, training steps use the dropout of the model's own configuration; other embeddings never do."""

    dropout = False

    def embed_batch(self, questions: Indices, passages: Indices) -> torch.Tensor:
        with self._dropout_mode():
            return super().embed_batch(questions, passages)

    def backward(self, gradient: torch.Tensor) -> None:
        with self._dropout_mode():
            super().backward(gradient)

    @contextmanager
    def _dropout_mode(self) -> Iterator[None]:
        self._encoder.model.train(self.dropout)
        try:
            yield
        finally:
            self._encoder.model.eval()


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with documents.jsonl.gz and questions.jsonl.gz.")],
    train_questions: Annotated[int, typer.Option("--train", help="At most so many to train on.")] = 400,
    examples: Annotated[int, typer.Option(help="At most so many pairs with what answers them.")] = 400,
    test_questions: Annotated[int, typer.Option("--test", help="At most so many to measure with.")] = Sample.test,
    documents: Annotated[int, typer.Option(help="At most so many, but all that answer a question.")] = 3_000,
    seed: Annotated[int, typer.Option(help="Of the sample and of the trainings.")] = 0,
    knobs: Annotated[
        str, typer.Option(help="JSON of knobs that differ from the defaults throughout, by group.")
    ] = "{}",
    only: Annotated[str, typer.Option(help="Leave out what does not begin so, but not the defaults.")] = "",
) -> None:
    """Measure and print one JSON object last."""
    began = time.perf_counter()
    sample = Sample(train=train_questions, examples=examples, test=test_questions, documents=documents, seed=seed)
    benchmark = load(data, sample)
    default, *others = variants(seed, json.loads(knobs))
    results = {
        variant.name: (evaluation, seconds)
        for variant, evaluation, seconds in _run(
            benchmark, [default, *(one for one in others if one.name.startswith(only))]
        )
    }
    before = results[default.name][0]
    shown = {
        name: {"ndcg_at_10": round(float(evaluation.ndcg.mean()), 4), "seconds": round(seconds, 1)}
        | {"minus_defaults": difference(before, evaluation, seed)}
        for name, (evaluation, seconds) in results.items()
    }
    _show(benchmark, shown)
    report = benchmark.facts() | {
        "defaults": default.request.model_dump(mode="json", include={"dataset", "training", "weights"}),
        "runs": shown,
        "seconds": round(time.perf_counter() - began, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")


def variants(seed: int, base: Knobs) -> list[Variant]:
    """The defaults but for ``base``, then each value of a knob that differs from them."""
    default = request_of(seed, base)
    made = [
        Variant(name, request_of(seed, base | {group: base.get(group, {}) | values for group, values in knobs.items()}))
        for name, knobs in VALUES
    ]
    different = [
        one
        for one in made
        if (one.request.dataset, one.request.training, one.request.weights)
        != (default.dataset, default.training, default.weights)
    ]
    return [Variant("defaults", default), *different, Variant("dropout as configured", default, dropout=True)]


def _run(benchmark: Benchmark, wanted: list[Variant]) -> Iterator[tuple[Variant, Evaluation, float]]:
    start: tuple[torch.Tensor, torch.Tensor] | None = None
    # Stable, so that the defaults come first.
    first = wanted[0].request.training.trainable_layers
    by_layers = sorted(wanted, key=lambda one: (_layers_of(one) != str(first), _layers_of(one)))
    for _, alike in groupby(by_layers, key=_layers_of):
        encoder = Encoder.load(packaged_minilm_folder())
        group = list(alike)
        with tempfile.TemporaryDirectory() as folder:
            trainable = _DropoutEncoder(
                encoder, benchmark.train, group[0].request.training.trainable_layers, Path(folder)
            )
            start_weights = trainable.weights()
            start = start or trainable.embed_all()
            # Fills the prefix cache, so that the first training alone does not pay for it, and not with dropout.
            trainable.embed_all()
            for variant in group:
                began = time.perf_counter()
                trainable.load_weights(start_weights)
                trainable.dropout = variant.dropout
                parts = parts_of(benchmark.train, variant.request.seed)
                fit(trainable, benchmark.train, parts, variant.request, start=start, listener=SilentListener())
                seconds = time.perf_counter() - began
                evaluation = _search(encoder, trainable, benchmark)
                typer.echo(f"{variant.name}: {evaluation.ndcg.mean():.4f}, {seconds:.0f} s", err=True)
                yield variant, evaluation, seconds


def _layers_of(variant: Variant) -> str:
    return str(variant.request.training.trainable_layers)


def _search(encoder: Encoder, trainable: TrainableEncoder, benchmark: Benchmark) -> Evaluation:
    """Both sides' documents are the same under the same indices, so what is cached for training serves here as well."""
    test = benchmark.test
    _, passages = trainable.embed(np.empty(0, dtype=np.int64), np.arange(test.searchable))
    queries = torch.from_numpy(encoder.encode_tokens(encoder.tokenize(test.questions, "query", TRAINING_TOKENS)))
    return evaluate(test, np.arange(len(test.questions)), queries, passages)


def _show(benchmark: Benchmark, shown: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"{benchmark.name}: {len(benchmark.test.questions)} questions", title_justify="left")
    for heading in ("", "ndcg@10", "less the defaults", "95 % interval", "seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found in shown.items():
        gain = found["minus_defaults"]
        interval = f"{gain['low']:+.4f} to {gain['high']:+.4f}"
        table.add_row(name, f"{found['ndcg_at_10']:.4f}", f"{gain['ndcg_at_10']:+.4f}", interval, f"{found['seconds']}")
    Console(stderr=True, width=120).print(table)


if __name__ == "__main__":
    with_allocator("benchmarks.ablation")
    typer.run(main)
