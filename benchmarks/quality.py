"""Retrieval quality and training time of foldtune and of what one would otherwise use, on one data set.

The data set is a folder in the format of ``benchmarks/retrieval.py``; its split ``dev`` is the test set. Every side
gets the same training questions and documents, and starts from the same folder, which truncates texts to ``MAX_TOKENS``
in mining, training and evaluation. All end as folders of sentence-transformers, which one function evaluates.

foldtune runs with its defaults, and with fewer negatives and layers. Sentence-transformers runs with the settings that
``--tune`` found best for this data set (``quality_choices.json``): recipe, learning rate and layers, chosen on the same
validation questions as foldtune's epochs, never on the test questions. Then it trains on all questions, while foldtune
keeps holding out the validation questions. ``st`` is the best of its recipes on the test questions. Seconds are those
from texts to a trained model, mining included, of the chosen settings alone; CPU seconds, which other load on a shared
machine hardly changes, are compared with one thread (``OMP_NUM_THREADS=1``), since idle threads of a pool count too.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.foldtune_recipe import SilentListener, create_request, split_without_held_out
from benchmarks.retrieval import Benchmark, Sample, evaluate_model, load, rounded_metrics
from benchmarks.sentence_transformers_recipe import MARGIN, TrainingConfig, load_model, mine_negatives, pairs
from benchmarks.sentence_transformers_recipe import train as train_theirs
from foldtune.events import FineTuneRequested
from trainers.engine.trainable_encoder import TRAINING_TOKENS, TrainableEncoder
from trainers.environment import ALLOCATOR_ENVIRONMENT
from trainers.evaluation.gate import gain_interval
from trainers.evaluation.metrics import Evaluation
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder
from trainers.model.tokens import Indices
from trainers.pipeline import fit
from trainers.publishing.artifacts import write_model

# Maximum text length of every side, in mining, training and evaluation.
MAX_TOKENS = TRAINING_TOKENS
# The fourteen sides of a set take about 2,500 CPU seconds with these.
EXAMPLES, TEST_QUESTIONS, DOCUMENTS = 500, 500, 4_000
CHOICES = Path(__file__).with_name("quality_choices.json")

Knobs = dict[str, dict[str, Any]]
# foldtune's frontier: the defaults, and what costs less.
OURS: dict[str, Knobs] = {
    "ours": {},
    "ours_1_hard": {"dataset": {"hard_negatives": 1, "easy_negatives": 0}},
    "ours_2_layers": {"training": {"trainable_layers": 2}},
    "ours_2_layers_1_hard": {
        "dataset": {"hard_negatives": 1, "easy_negatives": 0},
        "training": {"trainable_layers": 2},
    },
}


@dataclass(frozen=True)
class Recipe:
    """A documented recipe of sentence-transformers: mined ``negatives`` for each pair, or none."""

    negatives: int
    margin: float | None = MARGIN
    batch_size: int = 32
    cached: bool = False


# Its mining drops pairs that have too few negatives below the margin: with a base model that knows little of the data,
# most of them. Without a margin it keeps them all.
RECIPES = {
    "st_plain": Recipe(0),
    "st_plain_cached": Recipe(0, batch_size=128, cached=True),
    "st_mined_1": Recipe(1),
    "st_mined_1_any": Recipe(1, margin=None),
    "st_mined_4": Recipe(4),
}
LEARNING_RATES = (2e-5, 5e-5, 1e-4)
LAYERS = (2, None)
# Where nothing was chosen for a data set.
UNTUNED = {"layers": None, "learning_rate": 5e-5}


class Seconds(NamedTuple):
    """Elapsed seconds, and those that the threads of the training process ran."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Self:
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, began: Self) -> Self:
        ended = cls.now()
        return cls(ended.wall - began.wall, ended.cpu - began.cpu)


@dataclass(frozen=True)
class Result:
    """A side's evaluation on the test questions and the seconds of its training."""

    evaluation: Evaluation
    seconds: Seconds


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with documents.jsonl.gz and questions.jsonl.gz.")],
    train_questions: Annotated[int, typer.Option(help="Maximum number of training questions.")] = Sample.train,
    examples: Annotated[int, typer.Option(help="Maximum number of training pairs (question, positive).")] = EXAMPLES,
    test_questions: Annotated[int, typer.Option(help="Maximum number of test questions.")] = TEST_QUESTIONS,
    documents: Annotated[int, typer.Option(help="Number of documents; all positives are always included.")] = DOCUMENTS,
    seed: Annotated[int, typer.Option(help="Random seed of sampling and training.")] = 0,
    knobs: Annotated[str, typer.Option(help="Knobs that differ from the defaults: JSON, by group.")] = "{}",
    only: Annotated[str, typer.Option(help="Only sides whose names start with one of these, comma-separated.")] = "",
    tune: Annotated[
        bool, typer.Option(help="Choose sentence-transformers' settings on validation questions, and record them.")
    ] = False,
) -> None:
    """Run the benchmark; the last line of output is one JSON object."""
    sample = Sample(train=train_questions, examples=examples, test=test_questions, documents=documents, seed=seed)
    benchmark = load(data, sample)
    chosen = tuple(filter(None, only.split(",")))
    with bounded_base() as base:
        if tune:
            sys.stdout.write(json.dumps(_tune(base, benchmark, seed, chosen)) + "\n")
            return
        results: dict[str, Result] = {}
        for name, side in _sides(base, benchmark, seed, json.loads(knobs)).items():
            if name == "zero_shot" or not chosen or name.startswith(chosen):
                results[name] = _in_new_process(side)
                typer.echo(json.dumps({name: _summary(results[name])}), err=True)
    _print_table(benchmark, results)
    sys.stdout.write(json.dumps(_report(benchmark, results, seed)) + "\n")


def _sides(base: Path, benchmark: Benchmark, seed: int, knobs: Knobs) -> dict[str, Callable[[], Result]]:
    every = np.arange(len(benchmark.train.question))
    sides: dict[str, Callable[[], Result]] = {"zero_shot": partial(_zero_shot, base, benchmark)}
    for name, values in OURS.items():
        merged = {group: knobs.get(group, {}) | values.get(group, {}) for group in knobs | values}
        sides[name] = partial(_ours, base, benchmark, create_request(seed, merged))
    for name, recipe in RECIPES.items():
        config = chosen_config(benchmark.name, name, seed)
        sides[name] = partial(_theirs, base, benchmark, recipe, config, examples=every)
    sides["linear_adapter"] = partial(_linear_adapter, base, benchmark, seed)
    sides["adaptmem"] = partial(_adaptmem, base, benchmark, seed)
    return sides


def _in_new_process(side: Callable[[], Result]) -> Result:
    """So that no side starts with the memory that an earlier one has left behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(side).result()


def _zero_shot(base: Path, benchmark: Benchmark) -> Result:
    return Result(_evaluate(base, benchmark), Seconds(0, 0))


def _evaluate(folder: Path, benchmark: Benchmark) -> Evaluation:
    return evaluate_model(load_model(folder, MAX_TOKENS), benchmark.test, benchmark.test_questions)


def _ours(base: Path, benchmark: Benchmark, request: FineTuneRequested) -> Result:
    began = Seconds.now()
    encoder = Encoder.load(base)
    with _folder() as work:
        trainable = TrainableEncoder(encoder, benchmark.train, request.training.trainable_layers, work)
        parts = split_without_held_out(benchmark.train)
        record, interpolation = fit(
            trainable, benchmark.train, parts, request, start=trainable.embed_all(), listener=SilentListener()
        )
        seconds = Seconds.since(began)
        typer.echo(f"ours: {seconds.wall:.0f} s, validation {record.validation}, {interpolation}", err=True)
        write_model(encoder, work / "model")
        return Result(_evaluate(work / "model", benchmark), seconds)


def _theirs(
    base: Path,
    benchmark: Benchmark,
    recipe: Recipe,
    config: TrainingConfig,
    *,
    examples: Indices,
    validation: Indices | None = None,
) -> Result:
    """Trained on ``examples``; evaluated on the test questions, or on ``validation`` questions of the training set."""
    began = Seconds.now()
    rows = pairs(benchmark.train, examples)
    if recipe.negatives:
        model = load_model(base, MAX_TOKENS)
        rows = mine_negatives(model, benchmark.train, negatives=recipe.negatives, margin=recipe.margin, rows=rows)
    with _folder() as folder:
        summary = train_theirs(base, rows, config, folder)
        seconds = Seconds.since(began)
        typer.echo(f"{recipe}: {len(rows)} of {len(examples)} rows, {summary}", err=True)
        if validation is None:
            return Result(_evaluate(folder, benchmark), seconds)
        return Result(evaluate_model(load_model(folder, MAX_TOKENS), benchmark.train, validation), seconds)


def _linear_adapter(base: Path, benchmark: Benchmark, seed: int) -> Result:
    """The adapter whose learning rate is best on the validation questions; one training, since that takes seconds."""
    train, parts = benchmark.train, split_without_held_out(benchmark.train)
    model = load_model(base, MAX_TOKENS)
    with peers.run(peers.LINEAR_ADAPTER, base, train, parts.train, seed) as done:
        output, seconds = done
        maps = peers.query_maps(output)
        scores = [evaluate_model(model, train, parts.validation, query_map).ndcg.mean() for query_map in maps]
        best = int(np.argmax(scores))
        return Result(
            evaluate_model(model, benchmark.test, benchmark.test_questions, maps[best]), Seconds(*seconds[best])
        )


def _adaptmem(base: Path, benchmark: Benchmark, seed: int) -> Result:
    every = np.arange(len(benchmark.train.question))
    with peers.run(peers.ADAPTMEM, base, benchmark.train, every, seed) as done:
        output, (seconds,) = done
        return Result(_evaluate(output / "model", benchmark), Seconds(*seconds))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="foldtune-bench-") as name:
        yield Path(name)


@contextmanager
def bounded_base() -> Iterator[Path]:
    """A copy of the base model that truncates to ``MAX_TOKENS``: what every side starts from."""
    with _folder() as folder:
        load_model(packaged_minilm_folder(), MAX_TOKENS).save_pretrained(str(folder))
        yield folder


def _tune(base: Path, benchmark: Benchmark, seed: int, chosen: tuple[str, ...]) -> dict[str, Any]:
    """Train the ``chosen`` recipes, by default all, with every learning rate and depth, and record the best of each on
    the validation questions.
    """
    recipes = {name: recipe for name, recipe in RECIPES.items() if not chosen or name in chosen}
    parts = split_without_held_out(benchmark.train)
    scores: dict[str, list[dict[str, Any]]] = {name: [] for name in recipes}
    for name, recipe in recipes.items():
        for layers in LAYERS:
            for rate in LEARNING_RATES:
                config = _config(recipe, {"layers": layers, "learning_rate": rate}, seed)
                result = _in_new_process(
                    partial(_theirs, base, benchmark, recipe, config, examples=parts.train, validation=parts.validation)
                )
                score = round(float(result.evaluation.ndcg.mean()), 4)
                scores[name].append(
                    {
                        "layers": layers,
                        "learning_rate": rate,
                        "ndcg_at_10": score,
                        "seconds": round(result.seconds.wall),
                    }
                )
                typer.echo(f"{name}: {scores[name][-1]}", err=True)
    best = {
        name: {key: top[key] for key in UNTUNED}
        for name, rows in scores.items()
        for top in [max(rows, key=lambda row: row["ndcg_at_10"])]
    }
    choices = _choices()
    choices[benchmark.name] = choices.get(benchmark.name, {}) | best
    CHOICES.write_text(json.dumps(choices, indent=2) + "\n")
    return benchmark.description() | {"validation_questions": len(parts.validation), "tuned": scores}


def _config(recipe: Recipe, chosen: dict[str, Any], seed: int) -> TrainingConfig:
    return TrainingConfig(**chosen, batch_size=recipe.batch_size, cached=recipe.cached, seed=seed)


def chosen_config(data: str, recipe: str, seed: int) -> TrainingConfig:
    """What was chosen for a recipe on a data set, else for the plain recipe on it, which has the same loss."""
    choices = _choices().get(data, {})
    return _config(RECIPES[recipe], choices.get(recipe, choices.get("st_plain", UNTUNED)), seed)


def _choices() -> dict[str, Any]:
    return dict(json.loads(CHOICES.read_text())) if CHOICES.exists() else {}


def _report(benchmark: Benchmark, results: dict[str, Result], seed: int) -> dict[str, Any]:
    summaries: dict[str, Any] = {name: _summary(result) for name, result in results.items()}
    report = benchmark.description() | {"max_tokens": MAX_TOKENS, "tuned": benchmark.name in _choices()}
    evaluations = {name: result.evaluation for name, result in results.items()}
    theirs = [name for name in results if name in RECIPES]
    if theirs:
        best = max(theirs, key=lambda name: evaluations[name].ndcg.mean())
        summaries["st"] = summaries[best] | {"recipe": best}
    if "ours" in results:
        report |= {
            f"ours_minus_{name}": compare(evaluations[other], evaluations["ours"], seed)
            for name, other in (("zero_shot", "zero_shot"), *((("st", best),) if theirs else ()))
        }
    return report | summaries


def _summary(result: Result) -> dict[str, float]:
    seconds = {"seconds": round(result.seconds.wall, 1), "cpu_seconds": round(result.seconds.cpu, 1)}
    return rounded_metrics(result.evaluation) | seconds


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


def _print_table(benchmark: Benchmark, results: dict[str, Result]) -> None:
    table = Table(title=f"{benchmark.name}: {len(benchmark.test_questions)} questions", title_justify="left")
    for heading in ("", *rounded_metrics(results["zero_shot"].evaluation), "seconds", "CPU"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in results.items():
        metrics = rounded_metrics(result.evaluation).values()
        table.add_row(name, *(f"{value:.4f}" for value in metrics), *(f"{value:.0f}" for value in result.seconds))
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
