"""How long a training takes beside sentence-transformers' trainer, from texts to a model on disk; one JSON object last.

Same machine, base model, pairs and negatives (mined by sentence-transformers, which costs neither side anything); batch
32, 128 tokens, three epochs. Each run is a process of its own; the kinds take turns, so that a noisy machine disturbs
them alike.
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
from benchmarks.sentence_transformers_recipe import loaded, mined
from trainers.allocator import ALLOCATOR_ENVIRONMENT
from trainers.base_models import packaged_minilm_folder

# Each kind of run, and whether it gets the allocator's settings: as documented, sentence-transformers has none.
KINDS = {"st": False, "st_tuned": True, "ours": True, "st_tuned_all": True, "ours_all": True}


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder of data sets in the format of benchmarks/retrieval.py.")],
    questions: Annotated[int, typer.Option(help="Questions to train on.")] = 640,
    repeats: Annotated[int, typer.Option(help="Turns of each kind.")] = 2,
    documents: Annotated[int, typer.Option(help="Documents to mine in.")] = 10_000,
    quality: Annotated[bool, typer.Option(help="Compare what the models find, too.")] = True,
) -> None:
    """Measure and print one JSON object last."""
    folder = Path(tempfile.mkdtemp(prefix="foldtune-bench-"))
    try:
        result: dict[str, Any] = {"cores": os.cpu_count(), "questions": questions}
        result |= _speed(data / "squad", folder, questions, repeats)
        result |= _mining(data / "squad", documents)
    finally:
        shutil.rmtree(folder)
    if quality:
        result["quality_vs_st"] = {one.name: _quality(one) for one in sorted(data.iterdir()) if one.is_dir()}
    sys.stdout.write(json.dumps(result) + "\n")


def _speed(data: Path, folder: Path, questions: int, repeats: int) -> dict[str, Any]:
    benchmark = load(data, Sample(train=questions, test=1, documents=questions * 3))
    rows = mined(loaded(packaged_minilm_folder()), benchmark.train)
    rows.to_json(folder / "rows.jsonl")
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, found in runs.items():
            found.append(_run(kind, str(folder / "rows.jsonl"), tuned=KINDS[kind]))
    return {
        "rows": len(rows),
        "seconds": {kind: [round(one["seconds"], 1) for one in found] for kind, found in runs.items()},
        "speed_vs_st": _ratio(runs["st"], runs["ours"]),
        "speed_vs_st_tuned": _ratio(runs["st_tuned"], runs["ours"]),
        "all_layers_vs_st_tuned": _ratio(runs["st_tuned_all"], runs["ours_all"]),
        "gemm_share": round(statistics.median(one["gemm_share"] for one in runs["ours"]), 3),
        "gemm_gflops": round(statistics.median(one["gemm_gflops"] for one in runs["ours"])),
    }


def _mining(data: Path, documents: int) -> dict[str, Any]:
    theirs, ours = (
        _run(kind, str(data), "--documents", str(documents), tuned=True) for kind in ("st_mining", "our_mining")
    )
    return {
        "mining_documents": documents,
        "mining_seconds": {"st": round(theirs["seconds"], 1), "ours": round(ours["seconds"], 1)},
        "mining_vs_st": round(theirs["seconds"] / ours["seconds"], 2),
        "mining_peak_mb": {"st": round(theirs["peak_mb"]), "ours": round(ours["peak_mb"])},
    }


def _quality(data: Path) -> Any:
    command = [sys.executable, "-m", "benchmarks.quality", "--data", str(data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])["ours_minus_st"]


def _run(*arguments: str, tuned: bool) -> dict[str, float]:
    environment = os.environ | (ALLOCATOR_ENVIRONMENT if tuned else {})
    command = [sys.executable, "-m", "benchmarks.train_runs", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    typer.echo(f"{arguments[0]:>12} {found}", err=True)
    return found


def _ratio(theirs: list[dict[str, float]], ours: list[dict[str, float]]) -> dict[str, Any]:
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(theirs, ours, strict=True)]
    return {"median": round(statistics.median(ratios), 2), "runs": [round(one, 2) for one in ratios]}


if __name__ == "__main__":
    typer.run(main)
