"""Effect of each knob on a data set: one training for each of its values, with all other knobs at their defaults or at
the values of ``--knobs``.

The data set is a folder in the format of ``benchmarks/retrieval.py``; training is that of ``benchmarks/quality.py``.
nDCG@10 on the questions of split ``dev``, with texts truncated to 128 tokens, is compared, question by question, with
that of the defaults. The base model's embeddings are computed once, the frozen layers' outputs once for each number of
trainable layers.
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

from benchmarks.foldtune_recipe import SilentListener, create_request, split_without_held_out
from benchmarks.quality import compare, restart_with_allocator_options
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
    # At 1, only passages with exactly the same words are excluded.
    *((f"exclusion {value}", {"dataset": {"exclusion_threshold": value}}) for value in (0.3, 0.5, 0.8, 1.0)),
    *((f"layers {value}", {"training": {"trainable_layers": value}}) for value in (1, 2, 4, "all")),
    *((f"hard negatives {value}", {"dataset": {"hard_negatives": value}}) for value in (0, 4, 8)),
)


@dataclass(frozen=True)
class Variant:
    """One training; ``dropout`` is not a knob of the product."""

    name: str
    request: FineTuneRequested
    dropout: bool = False


class _DropoutEncoder(TrainableEncoder):
    """With ``dropout``, training steps use the dropout of the model's configuration; other forward passes never do."""

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
    train_questions: Annotated[int, typer.Option("--train", help="Maximum number of training questions.")] = 400,
    examples: Annotated[int, typer.Option(help="Maximum number of training pairs (question, positive).")] = 400,
    test_questions: Annotated[int, typer.Option("--test", help="Maximum number of test questions.")] = Sample.test,
    documents: Annotated[int, typer.Option(help="Number of documents; all positives are always included.")] = 3_000,
    seed: Annotated[int, typer.Option(help="Random seed of sampling and training.")] = 0,
    knobs: Annotated[
        str, typer.Option(help="Knobs that differ from the defaults in all trainings: JSON, by group.")
    ] = "{}",
    only: Annotated[str, typer.Option(help="Run only the defaults and the variants whose name starts with this.")] = "",
) -> None:
    """Run the benchmark; the last line of output is one JSON object."""
    began = time.perf_counter()
    sample = Sample(train=train_questions, examples=examples, test=test_questions, documents=documents, seed=seed)
    benchmark = load(data, sample)
    default, *others = _variants(seed, json.loads(knobs))
    results = {
        variant.name: (evaluation, seconds)
        for variant, evaluation, seconds in _run(
            benchmark, [default, *(variant for variant in others if variant.name.startswith(only))]
        )
    }
    baseline = results[default.name][0]
    runs = {
        name: {"ndcg_at_10": round(float(evaluation.ndcg.mean()), 4), "seconds": round(seconds, 1)}
        | {"minus_defaults": compare(baseline, evaluation, seed)}
        for name, (evaluation, seconds) in results.items()
    }
    _print_table(benchmark, runs)
    report = benchmark.description() | {
        "defaults": default.request.model_dump(mode="json", include={"dataset", "training", "weights"}),
        "runs": runs,
        "seconds": round(time.perf_counter() - began, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")


def _variants(seed: int, base: Knobs) -> list[Variant]:
    """The defaults, overridden by ``base``, and each of ``VALUES`` that differs from them."""
    default = create_request(seed, base)
    candidates = [
        Variant(
            name, create_request(seed, base | {group: base.get(group, {}) | values for group, values in knobs.items()})
        )
        for name, knobs in VALUES
    ]
    different = [
        variant
        for variant in candidates
        if (variant.request.dataset, variant.request.training, variant.request.weights)
        != (default.dataset, default.training, default.weights)
    ]
    return [Variant("defaults", default), *different, Variant("dropout as configured", default, dropout=True)]


def _run(benchmark: Benchmark, variants: list[Variant]) -> Iterator[tuple[Variant, Evaluation, float]]:
    start: tuple[torch.Tensor, torch.Tensor] | None = None
    # Sorting is stable, so the defaults come first.
    first = variants[0].request.training.trainable_layers
    by_layers = sorted(variants, key=lambda variant: (_layers(variant) != str(first), _layers(variant)))
    for _, same_layers in groupby(by_layers, key=_layers):
        encoder = Encoder.load(packaged_minilm_folder())
        group = list(same_layers)
        with tempfile.TemporaryDirectory() as folder:
            trainable = _DropoutEncoder(
                encoder, benchmark.train, group[0].request.training.trainable_layers, Path(folder)
            )
            start_weights = trainable.weights()
            start = start or trainable.embed_all()
            # Fill the prefix cache before any training: the first would pay for it alone, and perhaps with dropout.
            trainable.embed_all()
            for variant in group:
                began = time.perf_counter()
                trainable.load_weights(start_weights)
                trainable.dropout = variant.dropout
                parts = split_without_held_out(benchmark.train)
                fit(trainable, benchmark.train, parts, variant.request, start=start, listener=SilentListener())
                seconds = time.perf_counter() - began
                evaluation = _evaluate(encoder, trainable, benchmark)
                typer.echo(f"{variant.name}: {evaluation.ndcg.mean():.4f}, {seconds:.0f} s", err=True)
                yield variant, evaluation, seconds


def _layers(variant: Variant) -> str:
    return str(variant.request.training.trainable_layers)


def _evaluate(encoder: Encoder, trainable: TrainableEncoder, benchmark: Benchmark) -> Evaluation:
    """Test and training set share documents and indices, so the passages are embedded through the prefix cache."""
    test = benchmark.test
    _, passages = trainable.embed(np.empty(0, dtype=np.int64), np.arange(test.searchable))
    questions = [test.questions[question] for question in benchmark.test_questions]
    queries = torch.from_numpy(encoder.encode_tokens(encoder.tokenize(questions, "query", TRAINING_TOKENS)))
    return evaluate(test, benchmark.test_questions, queries, passages)


def _print_table(benchmark: Benchmark, runs: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"{benchmark.name}: {len(benchmark.test_questions)} questions", title_justify="left")
    for heading in ("", "ndcg@10", "minus the defaults", "95 % interval", "seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, run in runs.items():
        gain = run["minus_defaults"]
        interval = f"{gain['low']:+.4f} to {gain['high']:+.4f}"
        table.add_row(name, f"{run['ndcg_at_10']:.4f}", f"{gain['ndcg_at_10']:+.4f}", interval, f"{run['seconds']}")
    Console(stderr=True, width=120).print(table)


if __name__ == "__main__":
    restart_with_allocator_options("benchmarks.ablation")
    typer.run(main)
