"""``foldtune import``."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from foldtune.errors import UserError
from infra.settings import load_settings
from streams.client import FoldtuneClient
from streams.errors import OutOfBoundsError
from streams.events import ChatLog, DocumentDeleted, DocumentUpserted, Feedback
from streams.records import reasons_of

app = typer.Typer(add_completion=False, help="Send JSON Lines files.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="JSON Lines, UTF-8; '-' reads standard input.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad line.")]


class _Kind(BaseModel):
    """As much of a line as tells a deletion from a document, which need not say what it is."""

    type: str = "document_upserted"


@app.command()
def documents(file: File, strict: Strict = False) -> None:
    """Send passages. A line again is the same passage again: an import that was cut short is simply repeated."""

    def send(client: FoldtuneClient, line: bytes) -> None:
        deleted = _Kind.model_validate_json(line).type == "document_deleted"
        client.document((DocumentDeleted if deleted else DocumentUpserted).model_validate_json(line))

    _import(file, send, strict=strict)


@app.command()
def logs(file: File, strict: Strict = False) -> None:
    """Send chat logs. The log_id makes a line that is sent again count once."""
    _import(file, lambda client, line: client.log(ChatLog.model_validate_json(line)), strict=strict)


@app.command()
def feedback(file: File, strict: Strict = False) -> None:
    """Send verdicts on logs. The newest of a log counts."""
    _import(file, lambda client, line: client.feedback(Feedback.model_validate_json(line)), strict=strict)


def _import(file: Path, send: Callable[[FoldtuneClient, bytes], None], *, strict: bool) -> None:
    sent = bad = 0
    with _opened(file) as stream, FoldtuneClient(load_settings()) as client:
        for number, line in enumerate(_with_progress(stream, file), start=1):
            if not line.strip():
                continue
            try:
                send(client, line)
                sent += 1
            except (ValidationError, OutOfBoundsError) as error:
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
