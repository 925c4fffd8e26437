"""``foldtune import``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from foldtune.client.client import DELIVERY, FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.errors import OutOfBoundsError
from foldtune.events import ChatLog, ChatLogBatch, DocumentDeleted, DocumentUpserted, Event, EventType, Feedback, now
from foldtune.reasons import reasons_of
from foldtune.settings import Settings, load_settings
from foldtune.topic_admin import create_if_missing
from foldtune.topics import Topic

app = typer.Typer(add_completion=False, help="Publish JSON Lines files.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="JSON Lines in UTF-8; '-' for standard input.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first invalid line.")]


# The events of each command; the first is the default for lines without a type.
KINDS: dict[str, tuple[type[Event], ...]] = {
    "documents": (DocumentUpserted, DocumentDeleted),
    "logs": (ChatLog, ChatLogBatch),
    "feedback": (Feedback,),
}
_TOPICS = {"documents": Topic.DOCUMENTS, "logs": Topic.CHAT_LOGS, "feedback": Topic.FEEDBACK}


@app.command()
def documents(file: File, strict: Strict = False) -> None:
    """Publish documents. Idempotent: repeat an import that was interrupted."""
    _import(file, "documents", strict=strict)


@app.command()
def logs(file: File, strict: Strict = False) -> None:
    """Publish chat logs or batches of them. Idempotent by log_id."""
    _import(file, "logs", strict=strict)


@app.command()
def feedback(file: File, strict: Strict = False) -> None:
    """Publish verdicts on logs. The newest verdict of a log counts."""
    _import(file, "feedback", strict=strict)


def _parse(line: bytes, command: str) -> Event:
    """The event in a line.

    Raises:
        ValidationError: the line is not a valid event.
        UserError: the event belongs to another command.
    """
    event_type = EventType.model_validate_json(line).type
    kinds = {kind.model_fields["type"].default: kind for kind in KINDS[command]}
    for other, others in KINDS.items():
        if event_type not in kinds and event_type in {kind.model_fields["type"].default for kind in others}:
            raise UserError(f"type: {event_type!r} is imported with: foldtune import {other}")
    return kinds.get(event_type, KINDS[command][0]).model_validate_json(line)


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
    sent = rejected = 0
    settings, topic_exists, too_old = load_settings(), False, 0
    started = now()
    # A file is read faster than brokers take it: its events wait for room.
    with _open(file) as stream, FoldtuneClient(settings, block=DELIVERY) as client:
        for number, line in enumerate(_with_progress(stream, file), start=1):
            if not line.strip():
                continue
            try:
                event = _parse(line, command)
                if not topic_exists:
                    create_if_missing(settings.kafka, _TOPICS[command])
                    topic_exists = True
                _send(client, event)
                sent += 1
                logs = event.logs if isinstance(event, ChatLogBatch) else (event,) if isinstance(event, ChatLog) else ()
                too_old += sum(log.occurred_at < started - settings.sets.of(log.folder_id).max_age for log in logs)
            except (ValidationError, OutOfBoundsError, UserError) as error:
                rejected += 1
                for reason in reasons_of(error) if isinstance(error, ValidationError) else error.args:
                    typer.echo(f"line {number}: {reason}", err=True)
                if strict:
                    break
        client.flush()
    typer.echo(f"{sent} sent, {rejected} rejected")
    if too_old:
        typer.echo(f"{too_old} logs are older than sets.max_age ({_days(settings)}) and in no training set", err=True)
    if rejected:
        raise typer.Exit(1)


def _days(settings: Settings) -> str:
    """The age, of which a folder may have its own."""
    return f"{settings.sets.max_age.days} days" + (" or a folder's own" if settings.sets.folders else "")


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
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
