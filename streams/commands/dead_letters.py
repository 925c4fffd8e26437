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
    DeadLetter,
    Filter,
    decode_headers,
    destination,
    input_partitions,
    read_dead_letters,
    read_records,
    refusal_reason,
    replay,
)

app = typer.Typer(add_completion=False, help="List, show and replay records that were rejected.", no_args_is_help=True)

FromTopic = Annotated[str | None, typer.Option("--topic", help="Only those that came from this topic.")]
Since = Annotated[
    datetime | None,
    typer.Option(
        "--since", parser=parse_timestamp, metavar="TIME", help=f"Only those rejected since. {TIMESTAMP_HELP}."
    ),
]
Contains = Annotated[
    str | None, typer.Option("--contains", metavar="TEXT", help="Only those with this text in the event or the error.")
]


@app.command("list")
def list_dead_letters(
    topic: FromTopic = None, since: Since = None, contains: Contains = None, as_json: AsJson = False
) -> None:
    """List dead letters, oldest first, with their origin and the error: the field and the bound it exceeded."""
    kafka = load_settings().kafka
    dead_letters = read_dead_letters(kafka, _filter(kafka, topic, since, contains))
    if as_json:
        for dead_letter in dead_letters:
            print_json(_as_json(dead_letter))
        return
    rows = [
        (
            dead_letter.id,
            _origin_text(dead_letter),
            f"{dead_letter.at:%Y-%m-%d %H:%M:%S}",
            str(dead_letter.failures),
            "yes" if dead_letter.replayed else "no",
            dead_letter.error,
        )
        for dead_letter in dead_letters
    ]
    print_table(("id", "origin", "rejected at (UTC)", "failures", "replayed", "error"), rows)


@app.command()
def show(
    dead_letter_id: Annotated[str, typer.Argument(metavar="ID", help="As 'list' shows it, for example 0:12.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the value's bytes and nothing else.")] = False,
) -> None:
    """Show a dead letter's key, headers and value; bytes that are not text are escaped."""
    _check_ids([dead_letter_id])
    record = next(read_records(load_settings().kafka, {dead_letter_id}), None)
    if record is None:
        raise UserError(f"no dead letter {dead_letter_id}")
    if raw:
        sys.stdout.buffer.write(record.value or b"")
        sys.stdout.buffer.flush()
        return
    fields = {"key": (record.key or b"").decode(errors="backslashreplace"), **decode_headers(record)}
    for name, text in fields.items():
        typer.echo(f"{printable(name)}: {printable(text)}")
    typer.echo()
    for line in (record.value or b"").decode(errors="backslashreplace").split("\n"):
        typer.echo(printable(line))


@app.command("replay")
def replay_dead_letters(
    dead_letter_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", show_default=False)] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that were not replayed yet.")] = False,
    topic: FromTopic = None,
    since: Since = None,
    contains: Contains = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be replayed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Publish events again, unchanged, to the topic that they came from and the partition of their folder.

    Useful once the cause is gone: a bound, a version, a clock, a partitioner. An event that fails
    again becomes a new dead letter. Exit code 1 if one was refused.
    """
    kafka = load_settings().kafka
    dead_letters = _select(kafka, dead_letter_ids or [], everything, _filter(kafka, topic, since, contains))
    partitions = input_partitions(kafka)
    reasons = {dead_letter.id: refusal_reason(dead_letter, kafka, partitions) for dead_letter in dead_letters}
    replayable = [dead_letter for dead_letter in dead_letters if reasons[dead_letter.id] is None]
    for dead_letter_id, reason in reasons.items():
        if reason:
            typer.echo(f"{dead_letter_id} refused: {printable(reason)}", err=True)
    if dry_run:
        for dead_letter in replayable:
            target = destination(dead_letter, kafka, partitions) or ()
            typer.echo(f"{dead_letter.id} to {' '.join(map(str, target))}")
    elif replayable:
        if not yes:
            typer.confirm(f"Replay {_event_count(len(replayable))} to {', '.join(_topics(replayable))}?", abort=True)
        typer.echo(f"{replay(kafka, replayable, partitions)} replayed, {len(dead_letters) - len(replayable)} refused")
    else:
        typer.echo("nothing to replay")
    if len(replayable) < len(dead_letters):
        raise typer.Exit(1)


def _select(kafka: KafkaSettings, ids: Sequence[str], everything: bool, matches: Filter) -> list[DeadLetter]:
    if everything == bool(ids):
        raise UserError("give the ids of dead letters, or --all")
    _check_ids(ids)
    if everything:
        return [dead_letter for dead_letter in read_dead_letters(kafka, matches) if not dead_letter.replayed]
    dead_letters = read_dead_letters(
        kafka, lambda dead_letter, value: dead_letter.id in ids and matches(dead_letter, value)
    )
    matched = {dead_letter.id for dead_letter in dead_letters}
    if missing := [dead_letter_id for dead_letter_id in ids if dead_letter_id not in matched]:
        raise UserError(f"no such dead letter, or excluded by the filters: {', '.join(missing)}")
    return dead_letters


def _check_ids(ids: Sequence[str]) -> None:
    for dead_letter_id in ids:
        if not re.fullmatch(r"[0-9]+:[0-9]+", dead_letter_id):
            raise UserError(f"{dead_letter_id!r} is not the id of a dead letter; ids look like 0:12")


def _filter(kafka: KafkaSettings, topic: str | None, since: datetime | None, contains: str | None) -> Filter:
    names = {topic, f"{kafka.topic_prefix}{topic}"}

    def matches(dead_letter: DeadLetter, value: bytes) -> bool:
        return (
            (topic is None or (dead_letter.origin is not None and dead_letter.origin.topic in names))
            and (since is None or dead_letter.at >= since)
            and (contains is None or contains in dead_letter.error or os.fsencode(contains) in value)
        )

    return matches


def _origin_text(dead_letter: DeadLetter) -> str:
    return "unknown" if dead_letter.origin is None else "{} {}:{}".format(*dead_letter.origin)


def _topics(dead_letters: Sequence[DeadLetter]) -> list[str]:
    return sorted({dead_letter.origin.topic for dead_letter in dead_letters if dead_letter.origin})


def _event_count(count: int) -> str:
    return f"{count} event" if count == 1 else f"{count} events"


def _as_json(dead_letter: DeadLetter) -> dict[str, Any]:
    topic, partition, offset = dead_letter.origin or (None, None, None)
    return {
        "id": dead_letter.id,
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "at": dead_letter.at.isoformat(),
        "error": dead_letter.error,
        "key": None if dead_letter.key is None else dead_letter.key.decode(errors="backslashreplace"),
        "bytes": dead_letter.size,
        "failures": dead_letter.failures,
        "replayed": dead_letter.replayed,
    }
