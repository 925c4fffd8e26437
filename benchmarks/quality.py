"""Retrieval quality of the base model, of sentence-transformers' fine-tuned model and of foldtune's, on one data set.

The data set is a folder in the format of ``benchmarks/retrieval.py``; its split ``dev`` is the test set. Both sides
train three epochs on the same questions and documents. Texts are truncated to ``MAX_TOKENS`` everywhere: in mining, in
training and in the evaluation, which is one function for all models. So foldtune mines its first negatives with
truncated texts, too, which its training job embeds at full length.

foldtune uses its defaults, or the knobs of ``--knobs``, and holds out some training questions for validation.
Sentence-transformers trains on all of them, as in its documentation, once with two layers and once with all; foldtune
is compared with the better of the two on the test set.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.foldtune_recipe import SilentListener, parts_of, request_of
from benchmarks.retrieval import Benchmark, Sample, evaluate_encoder, figures, load
from benchmarks.sentence_transformers_recipe import TrainingConfig, load_model, mine_negatives
from benchmarks.sentence_transformers_recipe import train as train_theirs
from foldtune.events import FineTuneRequested
from trainers.engine.trainable_encoder import TRAINING_TOKENS, TrainableEncoder
from trainers.environment import ALLOCATOR_ENVIRONMENT
from trainers.evaluation.gate import gain_interval
from trainers.evaluation.metrics import Evaluation
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder
from trainers.pipeline import fit

THEIR_LAYERS = (2, None)
# Maximum text length of both sides, in training and in evaluation.
MAX_TOKENS = TRAINING_TOKENS


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with documents.jsonl.gz and questions.jsonl.gz.")],
    train_questions: Annotated[int, typer.Option(help="At most so many to train on.")] = Sample.train,
    examples: Annotated[int, typer.Option(help="At most so many pairs with what answers them.")] = Sample.examples,
    test_questions: Annotated[int, typer.Option(help="At most so many to measure with.")] = Sample.test,
    documents: Annotated[int, typer.Option(help="At most so many, but all that answer a question.")] = Sample.documents,
    seed: Annotated[int, typer.Option(help="Of the sample and of the trainings.")] = 0,
    knobs: Annotated[str, typer.Option(help="JSON of knobs that differ from the defaults, by group.")] = "{}",
    ours_only: Annotated[bool, typer.Option(help="Leave sentence-transformers out.")] = False,
) -> None:
    """Measure and print one JSON object last."""
    sample = Sample(train=train_questions, examples=examples, test=test_questions, documents=documents, seed=seed)
    benchmark = load(data, sample)
    base = packaged_minilm_folder()
    began = time.perf_counter()
    results = {"zero_shot": evaluate_encoder(Encoder.load(base), benchmark.test, MAX_TOKENS)}
    seconds = {"zero_shot": time.perf_counter() - began}
    results["ours"], seconds["ours"] = _ours(base, benchmark, request_of(seed, json.loads(knobs)))
    if not ours_only:
        for name, found, took in _theirs(base, benchmark, seed):
            results[name], seconds[name] = found, took
    _show(benchmark, results, seconds)
    sys.stdout.write(json.dumps(_report(benchmark, results, seconds, seed)) + "\n")


def _ours(base: Path, benchmark: Benchmark, request: FineTuneRequested) -> tuple[Evaluation, float]:
    began = time.perf_counter()
    encoder = Encoder.load(base)
    with tempfile.TemporaryDirectory() as folder:
        trainable = TrainableEncoder(encoder, benchmark.train, request.training.trainable_layers, Path(folder))
        parts = parts_of(benchmark.train, request.seed)
        record, interpolation = fit(
            trainable, benchmark.train, parts, request, start=trainable.embed_all(), listener=SilentListener()
        )
    seconds = time.perf_counter() - began
    typer.echo(f"ours: {seconds:.0f} s, validation {record.validation}, {interpolation}", err=True)
    return evaluate_encoder(encoder, benchmark.test, MAX_TOKENS), seconds


def _theirs(base: Path, benchmark: Benchmark, seed: int) -> list[tuple[str, Evaluation, float]]:
    began = time.perf_counter()
    rows = mine_negatives(load_model(base), benchmark.train)
    mining = time.perf_counter() - began
    typer.echo(f"sentence-transformers: {len(rows)} of {len(benchmark.train.question)} rows, {mining:.0f} s", err=True)
    found = []
    for layers in THEIR_LAYERS:
        folder = Path(tempfile.mkdtemp(prefix="foldtune-bench-"))
        try:
            trained = train_theirs(base, rows, TrainingConfig(layers, seed=seed), folder)
            typer.echo(f"sentence-transformers, {layers or 'all'} layers: {trained}", err=True)
            evaluation = evaluate_encoder(Encoder.load(folder), benchmark.test, MAX_TOKENS)
            found.append((f"st_{layers or 'all'}", evaluation, mining + trained.seconds))
        finally:
            shutil.rmtree(folder)
    return found


def _report(
    benchmark: Benchmark, results: dict[str, Evaluation], seconds: dict[str, float], seed: int
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        name: figures(found) | {"seconds": round(seconds[name], 1)} for name, found in results.items()
    }
    report = benchmark.facts() | {"max_tokens": MAX_TOKENS}
    theirs = [name for name in results if name.startswith("st_")]
    if theirs:
        best = max(theirs, key=lambda name: results[name].ndcg.mean())
        shown["st"] = shown[best] | {"recipe": best}
        report["ours_minus_st"] = difference(results[best], results["ours"], seed)
    report["ours_minus_zero_shot"] = difference(results["zero_shot"], results["ours"], seed)
    return report | shown


def difference(before: Evaluation, after: Evaluation, seed: int) -> dict[str, float]:
    """The gain in nDCG@10 with its paired 95% interval, and as a share of what was there before."""
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


def with_allocator(module: str) -> None:
    """Start this process once more with the allocator's settings, for both sides, unless it has them."""
    if not ALLOCATOR_ENVIRONMENT.items() <= os.environ.items():
        os.execve(  # noqa: S606  our own command line again
            sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | ALLOCATOR_ENVIRONMENT
        )


if __name__ == "__main__":
    with_allocator("benchmarks.quality")
    typer.run(main)
