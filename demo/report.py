"""The end of the demo's output: questions with both models' results, mean metrics, next steps."""

import os
import sys
from pathlib import Path
from shlex import quote

from rich.table import Table
from rich.text import Text

from demo.console import DemoConsole
from demo.pipeline import MODEL, Result
from demo.retrieval_task import RetrievalTask, SearchResults
from demo.running_system import RunningSystem
from trainers.model.tokens import Indices

# The first of the random draw, not picked: some get worse.
SHOWN_QUESTIONS = 8


def print_results(task: RetrievalTask, result: Result, console: DemoConsole) -> None:
    """Print some held-out questions with the results of both models, and the mean metrics over all of them."""
    questions = Table(title="Held-out questions: rank of the right document, and top hit", expand=True)
    questions.add_column("question", ratio=4, no_wrap=True)
    questions.add_column("before", justify="right", min_width=6)
    questions.add_column("after", justify="right", min_width=6)
    questions.add_column("top hit before", ratio=3, no_wrap=True)
    questions.add_column("top hit after", ratio=3, no_wrap=True)
    for number, pair in enumerate(task.questions.held_out[:SHOWN_QUESTIONS]):
        ranks = (_rank(results.ranks, number) for results in (result.before, result.after))
        hits = (_top_hit(task, results, number) for results in (result.before, result.after))
        questions.add_row(Text(pair.question), *ranks, *hits)
    console.rich.print(questions)

    means = Table(title=f"All {len(task.questions.held_out)} held-out questions, {len(task.documents):,} documents")
    for column in ("", "before", "after", "change"):
        means.add_column(column, justify="left" if not column else "right")
    after = result.after.metrics
    for name, before in result.before.metrics.items():
        means.add_row(name, f"{before:.3f}", f"{after[name]:.3f}", f"{after[name] / max(before, 1e-9) - 1:+.1%}")
    console.rich.print(means)


def print_next_steps(system: RunningSystem, address: str, console: DemoConsole) -> None:
    """Print where the data and the console are, and what to type in another terminal."""
    console.print(f"The system keeps running in {system.folder}; models are in {system.models}.")
    console.print("Paste these lines into another terminal:\n")
    # Not indented, to be copied as they are.
    for line in (f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH", *system.exports):
        console.print(line)
    console.print(f"\nThen try: foldtune status, or: foldtune request {MODEL} --wait")
    console.print(f"The job, its verdict and its questions: {address}")
    console.print(f"Ctrl-C here, or kill {os.getpid()}, stops everything and deletes the data.")


def _top_hit(task: RetrievalTask, results: SearchResults, number: int) -> Text:
    hit = task.documents[int(results.top_hits[number])]
    right = hit == task.questions.held_out[number].document
    return Text(hit.title, style="green" if right else "")


def _rank(ranks: Indices, number: int) -> Text:
    rank = int(ranks[number])
    return Text(f"{rank:,}", style="green" if rank == 1 else "")
