"""How long a training takes beside sentence-transformers' trainer, from texts to a model on disk; one JSON object last.

Same machine, base model, pairs and negatives (mined by sentence-transformers, which costs neither side anything); batch
32, 4 negatives, 128 tokens, three epochs, and the same layers trained. ``st`` is sentence-transformers as its
documentation starts it, in fp32; ``st_tuned`` has bf16 and our allocator's settings. Each run is a process of its own;
the kinds take turns, so that a noisy machine disturbs them alike.

``gemm_share``: floating-point operations a second in a step's trained layers ÷ those of plain products in the step's
shapes, made after each step. ``mining_vs_st``: ``mine_hard_negatives`` ÷ ours with the exclusions, embeddings included;
``search_vs_st`` is of the search and the exclusions alone, in more passages than there is time to embed. Peaks of
memory are above the process with model and texts. ``--quality`` adds what ``benchmarks/quality.py`` says of each data
set, in up to 40 minutes for each.
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
from trainers.environment import ALLOCATOR_ENVIRONMENT
from trainers.model.base_models import packaged_minilm_folder

Run = dict[str, float]

# Each kind of run, and whether it gets the allocator's settings: as documented, sentence-transformers has none.
KINDS = {"st": False, "st_tuned": True, "ours": True, "st_tuned_all": True, "ours_all": True}
# What both sides must have done alike, or the comparison is none.
_ALIKE = ("steps", "rows", "parameters")


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder of data sets in the format of benchmarks/retrieval.py.")],
    speed_on: Annotated[str, typer.Option(help="The data set for all but the quality.")] = "squad",
    questions: Annotated[int, typer.Option(help="Questions to train on.")] = 320,
    repeats: Annotated[int, typer.Option(help="Turns of each kind.")] = 2,
    documents: Annotated[int, typer.Option(help="Documents to mine in, embeddings included.")] = 4_000,
    passages: Annotated[int, typer.Option(help="Passages to search in, with given embeddings.")] = 100_000,
    quality: Annotated[bool, typer.Option(help="Compare what the models find, too.")] = False,
) -> None:
    """Measure and print one JSON object last."""
    folder = Path(tempfile.mkdtemp(prefix="foldtune-bench-"))
    try:
        result: dict[str, Any] = {"cores": os.cpu_count(), "data": speed_on, "questions": questions}
        result |= _speed(data / speed_on, folder, questions, repeats)
        result |= _mining(data / speed_on, documents, passages, repeats)
    finally:
        shutil.rmtree(folder)
    if quality:
        found = {one.parent.name: _quality(one.parent) for one in sorted(data.glob("*/documents.jsonl.gz"))}
        result["quality_vs_st"] = {name: one["ours_minus_st"] for name, one in found.items()}
        result["quality"] = found
    sys.stdout.write(json.dumps(result) + "\n")


def _speed(data: Path, folder: Path, questions: int, repeats: int) -> dict[str, Any]:
    benchmark = load(data, Sample(train=questions, examples=questions, test=1, documents=questions * 3))
    rows = mine_negatives(load_model(packaged_minilm_folder()), benchmark.train)
    rows.to_json(folder / "rows.jsonl")
    runs = _in_turns(KINDS, repeats, str(folder / "rows.jsonl"))
    _check_alike(runs["st"] + runs["st_tuned"] + runs["ours"])
    _check_alike(runs["st_tuned_all"] + runs["ours_all"])
    return {
        "rows": len(rows),
        "steps": runs["ours"][0]["steps"],
        "seconds": _all(runs, "seconds"),
        "cpu_seconds": _all(runs, "cpu_seconds"),
        **_ratio("speed_vs_st", runs["st"], runs["ours"]),
        **_ratio("speed_vs_st_tuned", runs["st_tuned"], runs["ours"]),
        **_ratio("all_layers_vs_st_tuned", runs["st_tuned_all"], runs["ours_all"]),
        "gemm_share": round(statistics.median(one["gemm_share"] for one in runs["ours"]), 3),
        "gemm_share_all_layers": round(statistics.median(one["gemm_share"] for one in runs["ours_all"]), 3),
        "gemm_gflops": round(statistics.median(one["gemm_gflops"] for one in runs["ours"])),
    }


def _mining(data: Path, documents: int, passages: int, repeats: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for what, options in (
        ("mining", ("--documents", str(documents), "--questions", "1000")),
        ("search", ("--passages", str(passages))),
    ):
        kinds = {f"st_{what}": True, f"our_{what}": True}
        runs = _in_turns(kinds, repeats, str(data), *options)
        theirs, ours = runs.values()
        result |= {
            **_ratio(f"{what}_vs_st", theirs, ours),
            f"{what}_seconds": _all(runs, "seconds"),
            f"{what}_peak_mb": _all(runs, "peak_mb"),
            f"{what}_passages": ours[0]["passages"],
            f"{what}_questions": ours[0]["questions"],
            f"{what}_negatives": {"st": theirs[0]["negatives"], "ours": ours[0]["negatives"]},
        }
    return result


def _in_turns(kinds: dict[str, bool], repeats: int, *arguments: str) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, found in runs.items():
            found.append(_run(kind, *arguments, tuned=kinds[kind]))
    return runs


def _check_alike(runs: list[Run]) -> None:
    for what in _ALIKE:
        if len(found := {one[what] for one in runs}) > 1:
            raise ValueError(f"the runs are no comparison, their {what} differ: {sorted(found)}")


def _quality(data: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quality", "--data", str(data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(*arguments: str, tuned: bool) -> Run:
    environment = os.environ | (ALLOCATOR_ENVIRONMENT if tuned else {})
    command = [sys.executable, "-m", "benchmarks.train_runs", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: Run = json.loads(done.stdout.splitlines()[-1])
    typer.echo(f"{arguments[0]:>12} {found}", err=True)
    return found


def _all(runs: dict[str, list[Run]], what: str) -> dict[str, list[float]]:
    return {kind: [round(one[what], 1) for one in found] for kind, found in runs.items()}


def _ratio(name: str, theirs: list[Run], ours: list[Run]) -> dict[str, Any]:
    """The median over the turns, and each of them."""
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(theirs, ours, strict=True)]
    return {name: round(statistics.median(ratios), 2), f"{name}_runs": [round(one, 2) for one in ratios]}


if __name__ == "__main__":
    typer.run(main)
