"""How commands show things: tables for people, JSON Lines for scripts."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foldtune.events import Event, FineTuneStatus, State

AsJson = Annotated[bool, typer.Option("--json", help="JSON, one object a line, for scripts.")]

# Nothing is folded where no terminal bounds it.
FILE_WIDTH = 10_000
# Below it, a column of folded text is no longer read; the terminal breaks the lines then.
NARROWEST = 12

# Why examples are left out, as the trainer's statuses and metrics name it, in words.
LEFT_OUT = {
    "disliked_without_positive": "disliked, and no document is known to be right",
    "positive_without_text": "the text of the right document is not known",
    "repeated_pair": "the same question and document once more",
}


def print_event(event: Event) -> None:
    """One event as a line, at once: the reader may be a pipe."""
    print(event.encode().decode(), flush=True)  # noqa: T201  standard output is the interface


def print_json(content: Any) -> None:
    """Any content as one line."""
    print(json.dumps(content, ensure_ascii=False), flush=True)  # noqa: T201


def printable(text: str) -> str:
    """Text that cannot steer the terminal: what is no visible character is shown escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that keeps every character, on a narrow terminal too, and never folds the first column: names."""
    # Ids and reasons are anyone's text, neither markup nor a terminal's commands.
    rows = [[printable(cell) for cell in row] for row in rows]
    longest = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    least = [longest[0], *(min(width, NARROWEST) for width in longest[1:])]
    table = Table()
    for column, width in zip(columns, least, strict=True):
        table.add_column(column, overflow="fold", no_wrap=not table.columns, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    # Each column has three characters more, and the last its border.
    console.width = max(console.width, sum(least) + 3 * len(least) + 1)
    console.print(table)


def newest_progress(statuses: Sequence[FineTuneStatus]) -> list[FineTuneStatus]:
    """The statuses, but of a run of running ones of a request only the last."""
    followed = zip_longest(statuses, statuses[1:])
    return [
        one
        for one, after in followed
        if not (after and one.state is after.state is State.RUNNING and one.request_id == after.request_id)
    ]


def warnings_of(status: FineTuneStatus) -> Iterator[str]:
    """The warnings of a status, each as a line; every later status of the request repeats them."""
    for warning in status.warnings:
        text = warning
        for name, words in LEFT_OUT.items():
            text = text.replace(name, words)
        yield f"warning: {text}"


def describe(status: FineTuneStatus) -> str:
    """What a status says beyond its state and its warnings."""
    parts = [*status.reasons]
    if progress := status.progress:
        parts.append(
            f"step {progress.step}/{progress.steps}, loss {progress.loss:.4f}, {progress.eta_seconds:.0f} s left"
        )
    if status.promoted is False:
        parts.append("kept back by the gate")
    parts += [uri for uri in (status.model_uri, status.log_uri, status.log_url) if uri]
    return "; ".join(parts)
