"""Output of commands: tables for people, JSON Lines for scripts."""

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

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON Lines, for scripts.")]

# Tables in files and pipes are not folded.
FILE_WIDTH = 10_000
# A narrower column of folded text is unreadable; on narrower terminals lines are wrapped instead.
MIN_COLUMN_WIDTH = 12

# Wording of the reasons for which the trainer excludes examples.
EXCLUSION_REASONS = {
    "disliked_without_positive": "disliked, without a known positive",
    "positive_without_text": "the text of the positive is unknown",
    "correction_without_document": "the document that a correction names is in no selected folder, or in several",
    "text_changed": "the document's text is another one than the log's",
    "follow_up": "a question with another positive in most of its logs, such as 'tell me more'",
    "repeated_pair": "duplicate of a question and its positive",
}


def print_event(event: Event) -> None:
    """Print one event as a line and flush it: the reader may be a pipe."""
    print(event.encode().decode(), flush=True)  # noqa: T201  standard output is the interface


def print_json(content: Any) -> None:
    """Print any JSON value as one line."""
    print(json.dumps(content, ensure_ascii=False), flush=True)  # noqa: T201


def printable(text: str) -> str:
    """Escape unprintable characters, so that untrusted text cannot control the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table without truncation; the first column, which holds names, is never folded."""
    # Ids and reasons are untrusted text, neither markup nor control sequences.
    rows = [[printable(cell) for cell in row] for row in rows]
    longest = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    min_widths = [longest[0], *(min(width, MIN_COLUMN_WIDTH) for width in longest[1:])]
    table = Table()
    for column, width in zip(columns, min_widths, strict=True):
        table.add_column(column, overflow="fold", no_wrap=not table.columns, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    # Padding and border take three characters per column, and one for the last border.
    console.width = max(console.width, sum(min_widths) + 3 * len(min_widths) + 1)
    console.print(table)


def collapse_progress(statuses: Sequence[FineTuneStatus]) -> list[FineTuneStatus]:
    """Of consecutive ``running`` statuses of a request keep only the last."""
    return [
        status
        for status, following in zip_longest(statuses, statuses[1:])
        if not (
            following and status.state is following.state is State.RUNNING and status.request_id == following.request_id
        )
    ]


def warning_lines(status: FineTuneStatus) -> Iterator[str]:
    """One line per warning of a status; later statuses of the request repeat them."""
    for warning in status.warnings:
        text = warning
        for name, words in EXCLUSION_REASONS.items():
            text = text.replace(name, words)
        yield f"warning: {text}"


def state_of(status: FineTuneStatus) -> str:
    """The state in a word."""
    return "queued" if status.waiting_for else status.state


def details(status: FineTuneStatus) -> str:
    """A status without its state and its warnings, as text."""
    parts = [*status.reasons]
    if status.state is State.WAITING:
        parts.append("waits for an earlier request of its model")
    if status.waiting_for:
        parts.append(f"waits for a {status.waiting_for}")
    if progress := status.progress:
        parts.append(
            f"step {progress.step}/{progress.steps}, loss {progress.loss:.4f}, {progress.eta_seconds:.0f} s left"
        )
    if status.promoted is False:
        parts.append("not promoted by the gate")
    parts += [uri for uri in (status.model_uri, status.log_uri, status.log_url) if uri]
    return "; ".join(parts)
