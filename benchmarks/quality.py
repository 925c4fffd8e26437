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

from benchmarks.foldtune_recipe import SilentListener, create_request, split_without_held_out
from benchmarks.retrieval import Benchmark, Sample, evaluate_encoder, load, rounded_metrics
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

# Trainable last layers of sentence-transformers' two models; None for all.
THEIR_LAYERS = (2, None)
# Maximum text length of both sides, in training and in evaluation.
MAX_TOKENS = TRAINING_TOKENS


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with documents.jsonl.gz and questions.jsonl.gz.")],
    train_questions: Annotated[int, typer.Option(help="Maximum number of training questions.")] = Sample.train,
    examples: Annotated[
        int, typer.Option(help="Maximum number of training pairs (question, positive).")
    ] = Sample.examples,
    test_questions: Annotated[int, typer.Option(help="Maximum number of test questions.")] = Sample.test,
    documents: Annotated[
        int, typer.Option(help="Number of documents; all positives are always included.")
    ] = Sample.documents,
    seed: Annotated[int, typer.Option(help="Random seed of sampling and training.")] = 0,
    knobs: Annotated[str, typer.Option(help="Knobs that differ from the defaults: JSON, by group.")] = "{}",
    ours_only: Annotated[bool, typer.Option(help="Skip sentence-transformers.")] = False,
) -> None:
    """Run the benchmark; the last line of output is one JSON object."""
    sample = Sample(train=train_questions, examples=examples, test=test_questions, documents=documents, seed=seed)
    benchmark = load(data, sample)
    base_folder = packaged_minilm_folder()
    began = time.perf_counter()
    results = {"zero_shot": evaluate_encoder(Encoder.load(base_folder), benchmark.test, MAX_TOKENS)}
    seconds = {"zero_shot": time.perf_counter() - began}
    results["ours"], seconds["ours"] = _ours(base_folder, benchmark, create_request(seed, json.loads(knobs)))
    if not ours_only:
        for name, evaluation, elapsed in _theirs(base_folder, benchmark, seed):
            results[name], seconds[name] = evaluation, elapsed
    _print_table(benchmark, results, seconds)
    sys.stdout.write(json.dumps(_report(benchmark, results, seconds, seed)) + "\n")


def _ours(base_folder: Path, benchmark: Benchmark, request: FineTuneRequested) -> tuple[Evaluation, float]:
    began = time.perf_counter()
    encoder = Encoder.load(base_folder)
    with tempfile.TemporaryDirectory() as folder:
        trainable = TrainableEncoder(encoder, benchmark.train, request.training.trainable_layers, Path(folder))
        parts = split_without_held_out(benchmark.train, request.seed)
        record, interpolation = fit(
            trainable, benchmark.train, parts, request, start=trainable.embed_all(), listener=SilentListener()
        )
    seconds = time.perf_counter() - began
    typer.echo(f"ours: {seconds:.0f} s, validation {record.validation}, {interpolation}", err=True)
    return evaluate_encoder(encoder, benchmark.test, MAX_TOKENS), seconds


def _theirs(base_folder: Path, benchmark: Benchmark, seed: int) -> list[tuple[str, Evaluation, float]]:
    began = time.perf_counter()
    rows = mine_negatives(load_model(base_folder), benchmark.train)
    mining_seconds = time.perf_counter() - began
    typer.echo(
        f"sentence-transformers: {len(rows)} of {len(benchmark.train.question)} rows, {mining_seconds:.0f} s", err=True
    )
    results = []
    for layers in THEIR_LAYERS:
        folder = Path(tempfile.mkdtemp(prefix="foldtune-bench-"))
        try:
            summary = train_theirs(base_folder, rows, TrainingConfig(layers, seed=seed), folder)
            typer.echo(f"sentence-transformers, {layers or 'all'} layers: {summary}", err=True)
            evaluation = evaluate_encoder(Encoder.load(folder), benchmark.test, MAX_TOKENS)
            results.append((f"st_{layers or 'all'}", evaluation, mining_seconds + summary.seconds))
        finally:
            shutil.rmtree(folder)
    return results


def _report(
    benchmark: Benchmark, results: dict[str, Evaluation], seconds: dict[str, float], seed: int
) -> dict[str, Any]:
    summaries: dict[str, Any] = {
        name: rounded_metrics(evaluation) | {"seconds": round(seconds[name], 1)} for name, evaluation in results.items()
    }
    report = benchmark.description() | {"max_tokens": MAX_TOKENS}
    theirs = [name for name in results if name.startswith("st_")]
    if theirs:
        best = max(theirs, key=lambda name: results[name].ndcg.mean())
        summaries["st"] = summaries[best] | {"recipe": best}
        report["ours_minus_st"] = compare(results[best], results["ours"], seed)
    report["ours_minus_zero_shot"] = compare(results["zero_shot"], results["ours"], seed)
    return report | summaries


def compare(before: Evaluation, after: Evaluation, seed: int) -> dict[str, float]:
    """Gain in nDCG@10 with its paired 95% confidence interval, and the gain relative to ``before``."""
    low, high = gain_interval(before, after, seed)
    gain = float((after.ndcg - before.ndcg).mean())
    return {
        "ndcg_at_10": round(gain, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "relative": round(gain / float(before.ndcg.mean()), 4),
    }


def _print_table(benchmark: Benchmark, results: dict[str, Evaluation], seconds: dict[str, float]) -> None:
    table = Table(title=f"{benchmark.name}: {len(benchmark.test.questions)} questions", title_justify="left")
    for heading in ("", *rounded_metrics(results["zero_shot"]), "seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, evaluation in results.items():
        metrics = rounded_metrics(evaluation).values()
        table.add_row(name, *(f"{value:.4f}" for value in metrics), f"{seconds[name]:.0f}")
    Console(stderr=True, width=120).print(table)


def restart_with_allocator_options(module: str) -> None:
    """Replace this process with one that has our allocator options, for both sides, unless it already has them."""
    if not ALLOCATOR_ENVIRONMENT.items() <= os.environ.items():
        os.execve(  # noqa: S606  the same command line
            sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | ALLOCATOR_ENVIRONMENT
        )


if __name__ == "__main__":
    restart_with_allocator_options("benchmarks.quality")
    typer.run(main)
