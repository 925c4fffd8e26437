"""``foldtune import``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.errors import OutOfBoundsError
from foldtune.events import ChatLog, ChatLogBatch, DocumentDeleted, DocumentUpserted, Event, Feedback
from foldtune.reasons import reasons_of
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False, help="Send JSON Lines files.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="JSON Lines, UTF-8; '-' reads standard input.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad line.")]


# What each command sends; the first is what a line is that does not say its type.
KINDS: dict[str, tuple[type[Event], ...]] = {
    "documents": (DocumentUpserted, DocumentDeleted),
    "logs": (ChatLog, ChatLogBatch),
    "feedback": (Feedback,),
}


class _Typed(BaseModel):
    """As much of a line as tells what it is."""

    type: str | None = None


@app.command()
def documents(file: File, strict: Strict = False) -> None:
    """Send passages. A line again is the same passage again: an import that was cut short is simply repeated."""
    _import(file, "documents", strict=strict)


@app.command()
def logs(file: File, strict: Strict = False) -> None:
    """Send chat logs, or batches of them. The log_id makes a log that is sent again count once."""
    _import(file, "logs", strict=strict)


@app.command()
def feedback(file: File, strict: Strict = False) -> None:
    """Send verdicts on logs. The newest of a log counts."""
    _import(file, "feedback", strict=strict)


def _parsed(line: bytes, command: str) -> Event:
    """The event in a line.

    Raises:
        ValidationError: it is none.
        UserError: it is one for another command.
    """
    named = _Typed.model_validate_json(line).type
    kinds = {kind.model_fields["type"].default: kind for kind in KINDS[command]}
    for other, theirs in KINDS.items():
        if named not in kinds and named in {kind.model_fields["type"].default for kind in theirs}:
            raise UserError(f"type: {named!r} is sent with: foldtune import {other}")
    return kinds.get(named, KINDS[command][0]).model_validate_json(line)


def _send(client: FoldtuneClient, event: Event) -> None:
    match event:
        case ChatLogBatch():
            for log in event.logs:
                client.log(log)
        case ChatLog():
            client.log(event)
        case Feedback():
            client.feedback(event)
        case DocumentUpserted() | DocumentDeleted():
            client.document(event)


def _import(file: Path, command: str, *, strict: bool) -> None:
    sent = bad = 0
    with _opened(file) as stream, FoldtuneClient(load_settings()) as client:
        for number, line in enumerate(_with_progress(stream, file), start=1):
            if not line.strip():
                continue
            try:
                _send(client, _parsed(line, command))
                sent += 1
            except (ValidationError, OutOfBoundsError, UserError) as error:
                bad += 1
                for reason in reasons_of(error) if isinstance(error, ValidationError) else error.args:
                    typer.echo(f"line {number}: {reason}", err=True)
                if strict:
                    break
    typer.echo(f"{sent} sent, {bad} refused")
    if bad:
        raise typer.Exit(1)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    if not file.is_file():
        raise UserError(f"no such file: {file}")
    with file.open("rb") as stream:
        yield stream


def _with_progress(stream: BinaryIO, file: Path) -> Iterator[bytes]:
    console = Console(stderr=True)
    total = file.stat().st_size if file.is_file() else None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(file.name, total=total)
        for line in stream:
            yield line
            progress.advance(task, len(line))
