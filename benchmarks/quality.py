"""How well a fine-tuned model finds what is right on a data set: as it came, by sentence-transformers, by foldtune.

A folder in the format of ``benchmarks/retrieval.py``; questions of its split ``dev`` are only searched with. Both sides
train three epochs on the same questions and documents, cut to 128 tokens, and are measured by the same code.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.retrieval import Benchmark, Sample, figures, load, search
from benchmarks.sentence_transformers_recipe import Recipe, loaded, mined
from benchmarks.sentence_transformers_recipe import train as train_theirs
from streams.events import FineTuneRequested, Progress, now
from streams.knobs import DatasetKnobs, TrainingKnobs, WeightKnobs
from trainers.allocator import ALLOCATOR_ENVIRONMENT
from trainers.base_models import packaged_minilm_folder
from trainers.encoder import Encoder
from trainers.evaluation import Evaluation, gain_interval
from trainers.trained_layers import TrainedLayers
from trainers.training import train

THEIR_LAYERS = (2, None)


class _Silent:
    def stepped(self, progress: Progress) -> None:
        """Nobody looks on."""


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with documents.jsonl.gz and questions.jsonl.gz.")],
    train_questions: Annotated[int, typer.Option(help="At most so many to train on.")] = Sample.train,
    test_questions: Annotated[int, typer.Option(help="At most so many to measure with.")] = Sample.test,
    documents: Annotated[int, typer.Option(help="At most so many, but all that answer a question.")] = Sample.documents,
    seed: Annotated[int, typer.Option(help="Of the sample and of the trainings.")] = 0,
    knobs: Annotated[str, typer.Option(help="JSON of knobs that differ from the defaults, by group.")] = "{}",
    ours_only: Annotated[bool, typer.Option(help="Leave sentence-transformers out.")] = False,
) -> None:
    """Measure and print one JSON object last."""
    benchmark = load(data, Sample(train_questions, test_questions, documents, seed))
    base = packaged_minilm_folder()
    began = time.perf_counter()
    zero_shot = search(Encoder.load(base), benchmark.test)
    results = {"zero_shot": zero_shot}
    seconds = {"zero_shot": time.perf_counter() - began}
    results["ours"], seconds["ours"] = _ours(base, benchmark, _request(seed, json.loads(knobs)))
    if not ours_only:
        theirs = {f"st_{layers or 'all'}": _theirs(base, benchmark, layers, seed) for layers in THEIR_LAYERS}
        results |= {name: found for name, (found, _) in theirs.items()}
        seconds |= {name: took for name, (_, took) in theirs.items()}
    _show(benchmark, results, seconds)
    sys.stdout.write(json.dumps(_report(benchmark, results, seconds, seed)) + "\n")


def _request(seed: int, knobs: dict[str, Any]) -> FineTuneRequested:
    return FineTuneRequested(
        request_id="benchmark",
        model="benchmark",
        requested_at=now(),
        seed=seed,
        dataset=DatasetKnobs(**knobs.get("dataset", {})),
        training=TrainingKnobs(**knobs.get("training", {})),
        weights=WeightKnobs(**knobs.get("weights", {})),
    )


def _ours(base: Path, benchmark: Benchmark, request: FineTuneRequested) -> tuple[Evaluation, float]:
    began = time.perf_counter()
    encoder = Encoder.load(base)
    with tempfile.TemporaryDirectory() as folder:
        layers = TrainedLayers(encoder, benchmark.train, request.training.trainable_layers, Path(folder))
        rows = np.arange(len(benchmark.train.question))
        train(layers, benchmark.train, rows, request, start=layers.embed_all(), observer=_Silent())
    seconds = time.perf_counter() - began
    return search(encoder, benchmark.test), seconds


def _theirs(base: Path, benchmark: Benchmark, layers: int | None, seed: int) -> tuple[Evaluation, float]:
    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="foldtune-bench-"))
    try:
        rows = mined(loaded(base), benchmark.train)
        train_theirs(base, rows, Recipe(layers, seed=seed), folder)
        seconds = time.perf_counter() - began
        return search(Encoder.load(folder), benchmark.test), seconds
    finally:
        shutil.rmtree(folder)


def _report(
    benchmark: Benchmark, results: dict[str, Evaluation], seconds: dict[str, float], seed: int
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        name: figures(found) | {"seconds": round(seconds[name], 1)} for name, found in results.items()
    }
    report: dict[str, Any] = {
        "data": benchmark.name,
        "cores": os.cpu_count(),
        "train_questions": len(benchmark.train.questions),
        "examples": len(benchmark.train.question),
        "test_questions": len(benchmark.test.questions),
        "documents": benchmark.test.documents,
    }
    theirs = [name for name in results if name.startswith("st_")]
    if theirs:
        best = max(theirs, key=lambda name: results[name].ndcg.mean())
        shown["st"] = shown[best] | {"recipe": best}
        report["ours_minus_st"] = _difference(results[best], results["ours"], seed)
    report["ours_minus_zero_shot"] = _difference(results["zero_shot"], results["ours"], seed)
    return report | shown


def _difference(before: Evaluation, after: Evaluation, seed: int) -> dict[str, float]:
    low, high = gain_interval(before, after, seed)
    gain = float((after.ndcg - before.ndcg).mean())
    return {
        "ndcg_at_10": round(gain, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "relative": round(gain / float(before.ndcg.mean()), 4),
    }


def _show(benchmark: Benchmark, results: dict[str, Evaluation], seconds: dict[str, float]) -> None:
    table = Table(title=f"{benchmark.name}: {len(benchmark.test.questions)} questions", title_justify="left")
    for heading in ("", *figures(results["zero_shot"]), "seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found in results.items():
        table.add_row(name, *(f"{figure:.4f}" for figure in figures(found).values()), f"{seconds[name]:.0f}")
    Console(stderr=True, width=120).print(table)


if __name__ == "__main__":
    # Read before a process starts, so it starts once more; both sides have them.
    if not ALLOCATOR_ENVIRONMENT.items() <= os.environ.items():
        os.execve(  # noqa: S606  our own command line again
            sys.executable,
            [sys.executable, "-m", "benchmarks.quality", *sys.argv[1:]],
            os.environ | ALLOCATOR_ENVIRONMENT,
        )
    typer.run(main)
