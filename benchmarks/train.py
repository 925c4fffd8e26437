"""Training and mining speed of foldtune and sentence-transformers; the last line of output is one JSON object.

Training is measured from texts to a model on disk, on the same machine with the same base model, pairs and negatives
(mined by sentence-transformers beforehand, which counts for neither side): batch size 32, 4 negatives, 128 tokens,
three epochs and the same trainable layers. ``st`` is sentence-transformers as documented, in fp32; ``st_tuned`` has
bf16 and our allocator options. Each run is a separate process, and the kinds alternate, so that noise on the machine
affects them equally.

``long_vs_st``: the same with all layers where every passage fills the 128 tokens, since shorter ones are repeated:
sentence-transformers' duration with bf16 and our allocator options ÷ ours, and ``long_vs_st_cpu`` that of CPU seconds,
which other load hardly changes; compare these with one thread (``OMP_NUM_THREADS=1``). ``negative_cost``: the CPU
seconds of a step that one more hard negative for each question costs there, and their share of a step with one.

``gemm_share``: FLOP rate of the trained layers in a step ÷ that of plain matrix products of the same shapes, measured
after each step. ``mining_vs_st``: duration of ``mine_hard_negatives`` ÷ ours with exclusions, both with embedding;
``search_vs_st``: search and exclusions only, in more passages than can be embedded in reasonable time. Peak memory is
that above the process with model and texts. ``--quality`` adds the results of ``benchmarks/quality.py`` for each data
set, up to 40 minutes each.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.retrieval import Sample, load
from benchmarks.sentence_transformers_recipe import load_model, mine_negatives
from trainers.engine.trainable_encoder import TRAINING_TOKENS
from trainers.environment import ALLOCATOR_ENVIRONMENT
from trainers.model.base_models import packaged_minilm_folder

Run = dict[str, float]

# Kinds of runs, and whether they get our allocator options: sentence-transformers as documented has none.
KINDS = {"st": False, "st_tuned": True, "ours": True, "st_tuned_all": True, "ours_all": True}
LONG_KINDS = {"st_tuned_all": True, "ours_all": True}
# Words, each of which is at least one token.
LONG = TRAINING_TOKENS
# Measurements that must be equal on both sides for a fair comparison.
_EQUAL_FIELDS = ("steps", "rows", "parameters")


def main(
    *,
    data: Annotated[
        Path, typer.Option(help="Folder whose subfolders are data sets in the format of benchmarks/retrieval.py.")
    ],
    speed_on: Annotated[str, typer.Option(help="Name of the data set for training and mining speed.")] = "squad",
    questions: Annotated[int, typer.Option(help="Number of training questions.")] = 320,
    long_questions: Annotated[int, typer.Option(help="Number of training questions with long passages.")] = 192,
    epochs: Annotated[int, typer.Option(help="Epochs of each training.")] = 3,
    repeats: Annotated[int, typer.Option(help="Number of runs of each kind.")] = 2,
    documents: Annotated[int, typer.Option(help="Number of documents to mine in, embedding included.")] = 4_000,
    passages: Annotated[int, typer.Option(help="Number of passages to search in, with embeddings given.")] = 100_000,
    only: Annotated[str, typer.Option(help="Only these parts, comma-separated.")] = "speed,long,mining",
    quality: Annotated[bool, typer.Option(help="Compare retrieval quality, too.")] = False,
) -> None:
    """Run the benchmark; the last line of output is one JSON object."""
    folder = Path(tempfile.mkdtemp(prefix="foldtune-bench-"))
    try:
        result: dict[str, Any] = {"cores": os.cpu_count(), "data": speed_on, "questions": questions}
        if "speed" in only:
            result |= _speed(data / speed_on, folder, questions, repeats, epochs)
        if "long" in only:
            result |= _long(data / speed_on, folder, long_questions, repeats, epochs)
        if "mining" in only:
            result |= _mining(data / speed_on, documents, passages, repeats)
    finally:
        shutil.rmtree(folder)
    if quality:
        folders = sorted(path.parent for path in data.glob("*/documents.jsonl.gz"))
        reports = {data_set.name: _quality(data_set) for data_set in folders}
        result["quality_vs_st"] = {name: report["ours_minus_st"] for name, report in reports.items()}
        result["quality"] = reports
    sys.stdout.write(json.dumps(result) + "\n")


def _speed(data: Path, folder: Path, questions: int, repeats: int, epochs: int) -> dict[str, Any]:
    rows = _mined_rows(data, questions)
    rows.to_json(folder / "rows.jsonl")
    runs = _run_alternating(KINDS, repeats, str(folder / "rows.jsonl"), "--epochs", str(epochs))
    _check_equal(runs["st"] + runs["st_tuned"] + runs["ours"])
    _check_equal(runs["st_tuned_all"] + runs["ours_all"])
    return {
        "rows": len(rows),
        "steps": runs["ours"][0]["steps"],
        "seconds": _values(runs, "seconds"),
        "cpu_seconds": _values(runs, "cpu_seconds"),
        **_ratio("speed_vs_st", runs["st"], runs["ours"]),
        **_ratio("speed_vs_st_tuned", runs["st_tuned"], runs["ours"]),
        **_ratio("all_layers_vs_st_tuned", runs["st_tuned_all"], runs["ours_all"]),
        "gemm_share": round(statistics.median(run["gemm_share"] for run in runs["ours"]), 3),
        "gemm_share_all_layers": round(statistics.median(run["gemm_share"] for run in runs["ours_all"]), 3),
        "gemm_gflops": round(statistics.median(run["gemm_gflops"] for run in runs["ours"])),
    }


def _long(data: Path, folder: Path, questions: int, repeats: int, epochs: int) -> dict[str, Any]:
    rows = _mined_rows(data, questions).map(_lengthen)
    rows.to_json(folder / "long.jsonl")
    fewer = [name for name in rows.column_names if name.startswith("negative_")][1:]
    rows.remove_columns(fewer).to_json(folder / "long_1.jsonl")
    options = "--epochs", str(epochs)
    runs = _run_alternating(LONG_KINDS, repeats, str(folder / "long.jsonl"), *options)
    with_one = [_run("ours_all", str(folder / "long_1.jsonl"), *options, tuned=True) for _ in range(repeats)]
    _check_equal([run for results in runs.values() for run in results])
    theirs, ours = runs.values()
    step_of_one = min(run["step_cpu_seconds"] for run in with_one)
    cost = (min(run["step_cpu_seconds"] for run in ours) - step_of_one) / len(fewer)
    return {
        "long_rows": len(rows),
        "long_epochs": epochs,
        "long_seconds": _values(runs, "seconds"),
        "long_cpu_seconds": _values(runs, "cpu_seconds"),
        **_ratio("long_vs_st", theirs, ours),
        **_ratio("long_vs_st_cpu", theirs, ours, "cpu_seconds"),
        "long_step_cpu_seconds": round(min(run["step_cpu_seconds"] for run in ours), 2),
        "negative_cost": {"cpu_seconds": round(cost, 3), "of_a_step_with_one": round(cost / step_of_one, 3)},
    }


def _mined_rows(data: Path, questions: int) -> Any:
    benchmark = load(data, Sample(train=questions, examples=questions, test=1, documents=questions * 3))
    return mine_negatives(load_model(packaged_minilm_folder()), benchmark.train)


def _lengthen(row: dict[str, str]) -> dict[str, str]:
    """The row with each passage repeated until it has enough words."""
    passages = {name: text for name, text in row.items() if name != "anchor"}
    return row | {
        name: " ".join((text.split() * LONG)[: max(LONG, len(text.split()))]) for name, text in passages.items()
    }


def _mining(data: Path, documents: int, passages: int, repeats: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for task, options in (
        ("mining", ("--documents", str(documents), "--questions", "1000")),
        ("search", ("--passages", str(passages))),
    ):
        kinds = {f"st_{task}": True, f"our_{task}": True}
        runs = _run_alternating(kinds, repeats, str(data), *options)
        theirs, ours = runs.values()
        result |= {
            **_ratio(f"{task}_vs_st", theirs, ours),
            f"{task}_seconds": _values(runs, "seconds"),
            f"{task}_peak_mb": _values(runs, "peak_mb"),
            f"{task}_passages": ours[0]["passages"],
            f"{task}_questions": ours[0]["questions"],
            f"{task}_negatives": {"st": theirs[0]["negatives"], "ours": ours[0]["negatives"]},
        }
    return result


def _run_alternating(kinds: dict[str, bool], repeats: int, *arguments: str) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, results in runs.items():
            results.append(_run(kind, *arguments, tuned=kinds[kind]))
    return runs


def _check_equal(runs: list[Run]) -> None:
    for field in _EQUAL_FIELDS:
        if len(values := {run[field] for run in runs}) > 1:
            raise ValueError(f"the runs are not comparable: their {field} differ: {sorted(values)}")


def _quality(data: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quality", "--data", str(data)]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report


def _run(*arguments: str, tuned: bool) -> Run:
    environment = os.environ | (ALLOCATOR_ENVIRONMENT if tuned else {})
    command = [sys.executable, "-m", "benchmarks.train_runs", *arguments]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    run: Run = json.loads(process.stdout.splitlines()[-1])
    typer.echo(f"{arguments[0]:>12} {run}", err=True)
    return run


def _values(runs: dict[str, list[Run]], field: str) -> dict[str, list[float]]:
    return {kind: [round(run[field], 1) for run in results] for kind, results in runs.items()}


def _ratio(name: str, theirs: list[Run], ours: list[Run], field: str = "seconds") -> dict[str, Any]:
    """The ratio of durations, theirs ÷ ours: the median over the pairs of runs, and each of them."""
    ratios = [a[field] / b[field] for a, b in zip(theirs, ours, strict=True)]
    return {name: round(statistics.median(ratios), 2), f"{name}_runs": [round(ratio, 2) for ratio in ratios]}


if __name__ == "__main__":
    typer.run(main)
