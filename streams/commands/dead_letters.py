"""``foldtune dead-letters``."""

import os
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from foldtune.commands.errors import UserError
from foldtune.commands.output import AsJson, print_json, print_table, printable
from foldtune.commands.timestamps import TIMESTAMP_HELP, parse_timestamp
from foldtune.settings import KafkaSettings, load_settings
from streams.publishing.dead_letter_replay import (
    Letter,
    Wanted,
    headers_of,
    input_partitions,
    read_letters,
    records_of,
    refusal,
    replay,
)

app = typer.Typer(add_completion=False, help="What could not be used.", no_args_is_help=True)

FromTopic = Annotated[str | None, typer.Option("--topic", help="Only those that came from this topic.")]
Since = Annotated[
    datetime | None,
    typer.Option(
        "--since", parser=parse_timestamp, metavar="TIME", help=f"Only those put aside since. {TIMESTAMP_HELP}."
    ),
]
Contains = Annotated[
    str | None, typer.Option("--contains", metavar="TEXT", help="Only those with this in the event or in the error.")
]


@app.command("list")
def list_letters(
    topic: FromTopic = None, since: Since = None, contains: Contains = None, as_json: AsJson = False
) -> None:
    """Show what was put aside, oldest first: where it came from, and the field and the bound that it broke."""
    kafka = load_settings().kafka
    letters = read_letters(kafka, _wanted(kafka, topic, since, contains))
    if as_json:
        for letter in letters:
            print_json(_as_json(letter))
        return
    rows = [
        (
            letter.id,
            _came_from(letter),
            f"{letter.at:%Y-%m-%d %H:%M:%S}",
            str(letter.failures),
            "yes" if letter.replayed else "no",
            letter.error,
        )
        for letter in letters
    ]
    print_table(("letter", "came from", "at (UTC)", "failures", "replayed", "error"), rows)


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="LETTER", help="As 'list' names it: 0:12.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the event's bytes, and nothing else.")] = False,
) -> None:
    """Show a letter's headers and the event as it came; what is no text is escaped."""
    _check_ids([letter_id])
    record = next(records_of(load_settings().kafka, {letter_id}), None)
    if record is None:
        raise UserError(f"no dead letter {letter_id}")
    if raw:
        sys.stdout.buffer.write(record.value or b"")
        sys.stdout.buffer.flush()
        return
    lines = {"key": (record.key or b"").decode(errors="backslashreplace"), **headers_of(record)}
    for name, value in lines.items():
        typer.echo(f"{printable(name)}: {printable(value)}")
    typer.echo()
    for line in (record.value or b"").decode(errors="backslashreplace").split("\n"):
        typer.echo(printable(line))


@app.command("replay")
def replay_letters(
    letter_ids: Annotated[list[str] | None, typer.Argument(metavar="[LETTER]...", show_default=False)] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that were not replayed yet.")] = False,
    topic: FromTopic = None,
    since: Since = None,
    contains: Contains = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replayed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Publish events again, unchanged, to the topic and the partition that they came from.

    Of use once what they broke has changed: a bound, a version, a clock. One that fails again is a new letter.
    Exit code 1 if one was refused.
    """
    kafka = load_settings().kafka
    letters = _chosen(kafka, letter_ids or [], everything, _wanted(kafka, topic, since, contains))
    partitions = input_partitions(kafka)
    reasons = {letter.id: refusal(letter, kafka, partitions) for letter in letters}
    sound = [letter for letter in letters if reasons[letter.id] is None]
    for letter_id, reason in reasons.items():
        if reason:
            typer.echo(f"{letter_id} is not replayed: {printable(reason)}", err=True)
    if dry_run:
        for letter in sound:
            typer.echo(f"{letter.id} to {_came_from(letter).rpartition(':')[0]}")
    elif sound:
        if not yes:
            typer.confirm(f"Replay {_counted(len(sound))} to {', '.join(_topics(sound))}?", abort=True)
        typer.echo(f"{replay(kafka, sound)} replayed, {len(letters) - len(sound)} refused")
    else:
        typer.echo("nothing to replay")
    if len(sound) < len(letters):
        raise typer.Exit(1)


def _chosen(kafka: KafkaSettings, ids: Sequence[str], everything: bool, wanted: Wanted) -> list[Letter]:
    if everything == bool(ids):
        raise UserError("name the letters to replay, or give --all")
    _check_ids(ids)
    if everything:
        return [letter for letter in read_letters(kafka, wanted) if not letter.replayed]
    letters = read_letters(kafka, lambda letter, value: letter.id in ids and wanted(letter, value))
    if missing := [one for one in ids if one not in {letter.id for letter in letters}]:
        raise UserError(f"no such dead letter, or not one that the filters let through: {', '.join(missing)}")
    return letters


def _check_ids(ids: Sequence[str]) -> None:
    for one in ids:
        if not re.fullmatch(r"[0-9]+:[0-9]+", one):
            raise UserError(f"{one!r} names no dead letter; an id looks like 0:12")


def _wanted(kafka: KafkaSettings, topic: str | None, since: datetime | None, contains: str | None) -> Wanted:
    names = {topic, f"{kafka.topic_prefix}{topic}"}

    def wanted(letter: Letter, value: bytes) -> bool:
        return (
            (topic is None or (letter.origin is not None and letter.origin.topic in names))
            and (since is None or letter.at >= since)
            and (contains is None or contains in letter.error or os.fsencode(contains) in value)
        )

    return wanted


def _came_from(letter: Letter) -> str:
    return "unknown" if letter.origin is None else "{} {}:{}".format(*letter.origin)


def _topics(letters: Sequence[Letter]) -> list[str]:
    return sorted({letter.origin.topic for letter in letters if letter.origin})


def _counted(count: int) -> str:
    return f"{count} event" if count == 1 else f"{count} events"


def _as_json(letter: Letter) -> dict[str, Any]:
    topic, partition, offset = letter.origin or (None, None, None)
    return {
        "id": letter.id,
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "at": letter.at.isoformat(),
        "error": letter.error,
        "key": None if letter.key is None else letter.key.decode(errors="backslashreplace"),
        "bytes": letter.size,
        "failures": letter.failures,
        "replayed": letter.replayed,
    }
