"""``foldtune import``."""

import codecs
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
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
from foldtune.excerpts import excerpt
from foldtune.reasons import reasons_of
from foldtune.settings import Settings, load_settings
from foldtune.topic_admin import create_if_missing
from foldtune.topics import Topic

app = typer.Typer(add_completion=False, help="Publish JSON Lines files.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="JSON Lines or a JSON array, in UTF-8 or UTF-16; '-' for standard input.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first invalid line.")]

_NOT_LINES = "not JSON Lines: each event needs a line of its own, or all of them are one JSON array"
# What exports of chats, for training or by API, call their turns.
_CONVERSATION = {"conversation", "conversations", "messages", "turns"}
_MAX_KEYS = 100
_BETWEEN_ITEMS = re.compile(r"[\s,]*")

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
        for place, line in _values(_in_utf8(_with_progress(stream, file))):
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
                if not sent + rejected:
                    _refuse_another_form(line, place, command)
                rejected += 1
                for reason in reasons_of(error) if isinstance(error, ValidationError) else error.args:
                    typer.echo(f"{place}: {reason}", err=True)
                if strict:
                    break
        client.flush()
    typer.echo(f"{sent} sent, {rejected} rejected")
    if too_old:
        typer.echo(f"{too_old} logs are older than sets.max_age ({_days(settings)}) and in no training set", err=True)
    if rejected:
        raise typer.Exit(1)


def _refuse_another_form(value: bytes, place: str, command: str) -> None:
    """Say once what thousands of messages about missing fields would say: that the file is another program's.

    Raises:
        UserError: a JSON object that has at most one of the fields that an event needs.
    """
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        return
    needed = [name for name, field in KINDS[command][0].model_fields.items() if field.is_required()]
    if (
        not isinstance(content, dict)
        or "type" in content
        or len(missing := set(needed) - content.keys()) < len(needed) - 1
    ):
        return
    found = excerpt(", ".join(content), _MAX_KEYS)
    lacking = ", ".join(name for name in needed if name in missing)
    reason = f"{place} has {found}, and not {lacking}: a file of another form, to be converted first"
    if command == "logs" and content.keys() & _CONVERSATION:
        reason += ". Conversations that do not tell what was retrieved have nothing to learn from"
    raise UserError(reason)


def _days(settings: Settings) -> str:
    """The age, of which a folder may have its own."""
    return f"{settings.sets.max_age.days} days" + (" or a folder's own" if settings.sets.folders else "")


def _in_utf8(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without the mark that some programs put in front; those in UTF-16 (PowerShell) converted."""
    first = next(lines, b"")
    if not first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield from chain((first.removeprefix(codecs.BOM_UTF8),), lines)
        return
    rest = ""
    for text in codecs.iterdecode(chain((first,), lines), "utf-16", errors="replace"):
        *whole, rest = (rest + text).split("\n")
        yield from map(str.encode, whole)
    yield rest.encode()


def _values(lines: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    """Each line that is not blank, or each item of a JSON array, with its place in the file.

    Raises:
        UserError: it is neither JSON Lines nor an array.
    """
    is_first = True
    for number, line in enumerate(lines, start=1):
        if not (content := line.strip()):
            continue
        if is_first and content.startswith(b"["):
            yield from _items(b"".join((content, b"\n", *lines)))
            return
        if is_first and content == b"{":
            whole = b"".join((content, b"\n", *lines))
            try:
                json.loads(whole)
            except (ValueError, RecursionError):
                raise UserError(_NOT_LINES) from None
            yield "the only item", whole
            return
        is_first = False
        yield f"line {number}", line


def _items(array: bytes) -> Iterator[tuple[str, bytes]]:
    """The items of an array; from the first that is no JSON on, all as one."""
    # What is no UTF-8 becomes what no JSON has, as in a line.
    text, decoder, at, number = array.decode("utf-8", "surrogateescape"), json.JSONDecoder(), 1, 1
    while True:
        at = _BETWEEN_ITEMS.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        yield f"item {number}", text[at:end].encode("utf-8", "surrogateescape")
        at, number = end, number + 1
    if rest := text[at:].removeprefix("]").strip():
        yield f"item {number}", rest.encode("utf-8", "surrogateescape")
    elif not text.startswith("]", at):
        raise UserError(f"the array has no end: after item {number - 1}, a ] is missing")


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
