"""What the demonstration has to show at its end."""

import os
import sys
from pathlib import Path
from shlex import quote

from rich.table import Table
from rich.text import Text

from demo.material import Answers, Material
from demo.screen import Screen
from demo.stages import MODEL, Result
from demo.surroundings import Surroundings
from trainers.model.tokens import Indices

# As they were drawn, not picked: some get worse.
SHOWN_QUESTIONS = 8


def show_answers(material: Material, result: Result, screen: Screen) -> None:
    """Some held-out questions with the answers of both models, and the means over all of them."""
    answers = Table(title="Held-out questions: the right document's rank, and what came first", expand=True)
    answers.add_column("question", ratio=4, no_wrap=True)
    answers.add_column("before", justify="right", min_width=6)
    answers.add_column("after", justify="right", min_width=6)
    answers.add_column("first before", ratio=3, no_wrap=True)
    answers.add_column("first after", ratio=3, no_wrap=True)
    for number, pair in enumerate(material.questions.held_out[:SHOWN_QUESTIONS]):
        hits = (_hit(material, found, number) for found in (result.before, result.after))
        ranks = (_rank(found.ranks, number) for found in (result.before, result.after))
        answers.add_row(Text(pair.question), *ranks, *hits)
    screen.console.print(answers)

    means = Table(title=f"All {len(material.questions.held_out)} of them, in {len(material.documents):,} documents")
    for column in ("", "before", "after", "change"):
        means.add_column(column, justify="left" if not column else "right")
    after = result.after.metrics
    for name, old in result.before.metrics.items():
        means.add_row(name, f"{old:.3f}", f"{after[name]:.3f}", f"{after[name] / max(old, 1e-9) - 1:+.1%}")
    screen.console.print(means)


def show_how_to_go_on(surroundings: Surroundings, result: Result, screen: Screen) -> None:
    """Where everything is, and what to type in another terminal."""
    screen.say(f"Everything goes on running in {surroundings.folder}; the model is in {result.model_folder}.")
    screen.say("Paste these lines into another terminal:\n")
    # Not indented, so that they are copied as they stand.
    for line in (f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH", *surroundings.exports):
        screen.say(line)
    screen.say(f"\nThen try: foldtune status, or: foldtune request {MODEL} --wait")
    screen.say(f"Ctrl-C here, or kill {os.getpid()}, stops it all and deletes the data.")


def _hit(material: Material, answers: Answers, number: int) -> Text:
    hit = material.documents[int(answers.top[number])]
    right = hit == material.questions.held_out[number].document
    return Text(hit.title, style="green" if right else "")


def _rank(ranks: Indices, number: int) -> Text:
    rank = int(ranks[number])
    return Text(f"{rank:,}", style="green" if rank == 1 else "")
