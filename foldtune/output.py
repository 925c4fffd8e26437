"""How commands show things: tables for people, JSON Lines for scripts."""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streams.events import Event, FineTuneStatus

AsJson = Annotated[bool, typer.Option("--json", help="JSON, one object a line, for scripts.")]


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
    """A table that keeps every character, on a narrow terminal too; no cell is taken for markup."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(soft_wrap=False).print(table)


def describe(status: FineTuneStatus) -> str:
    """What a status says beyond its state."""
    parts = [*status.reasons, *(f"warning: {warning}" for warning in status.warnings)]
    if progress := status.progress:
        parts.append(
            f"step {progress.step}/{progress.steps}, loss {progress.loss:.4f}, {progress.eta_seconds:.0f} s left"
        )
    if status.promoted is False:
        parts.append("kept back by the gate")
    parts += [uri for uri in (status.model_uri, status.log_uri) if uri]
    return "; ".join(parts)
