"""``foldtune erase``."""

import uuid
from datetime import datetime
from typing import Annotated

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.commands.output import print_table
from foldtune.commands.timestamps import TIMESTAMP_HELP, parse_timestamp
from foldtune.events import ErasureRequested, now
from foldtune.settings import Settings, load_settings
from streams.training_sets.erasure_preview import preview_erasure

app = typer.Typer(add_completion=False)

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "foldtune:erasure")


@app.command()
def erase(
    *,
    user: Annotated[str | None, typer.Option(metavar="ID", help="What this user asked.")] = None,
    log: Annotated[str | None, typer.Option(metavar="ID", help="This log, and verdicts on it.")] = None,
    conversation: Annotated[str | None, typer.Option(metavar="ID", help="What was asked in this conversation.")] = None,
    document: Annotated[str | None, typer.Option(metavar="ID", help="This passage's text, in logs too.")] = None,
    before: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_timestamp,
            metavar="TIME",
            help=f"Only what occurred until then; default: now. {TIMESTAMP_HELP}.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only count, by folder, what it covers of what the topics still hold. The training sets may hold"
            " less: they leave out what is too old, and what was erased before.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Have every worker forget a user, a log, a conversation or a document; cannot be undone.

    It leaves the training sets, their changelog and later snapshots. It does not leave the input topics, the dead
    letters, earlier snapshots or models that were trained on it.
    """
    given = {"user": user, "log": log, "conversation": conversation, "document": document}
    named = [(subject, name) for subject, name in given.items() if name is not None]
    if len(named) != 1:
        raise UserError("name one of --user, --log, --conversation and --document")
    event = _event(*named[0], before or now())
    settings = load_settings()
    if dry_run:
        _show_counts(event, settings)
        return
    if not yes:
        what = f"{event.subject} {event.subject_id!r}, up to {event.occurred_at:%Y-%m-%d %H:%M:%S} UTC"
        typer.confirm(f"Erase {what}, for good?", abort=True)
    with FoldtuneClient(settings) as client:
        client.erase(event)
    typer.echo(f"asked every partition to forget, as {event.erasure_id}")


def _event(subject: str, subject_id: str, until: datetime) -> ErasureRequested:
    # The same subject and time make the same erasure, so a command that is repeated asks for nothing new.
    name = ascii((subject, subject_id, until.isoformat()))
    return ErasureRequested.model_validate(
        {
            "erasure_id": str(uuid.uuid5(_NAMESPACE, name)),
            "occurred_at": until,
            "subject": subject,
            "subject_id": subject_id,
        }
    )


def _show_counts(event: ErasureRequested, settings: Settings) -> None:
    rows = [
        (folder_id, *(str(len(one)) for one in (found.logs, found.feedback, found.documents, found.passages)))
        for folder_id, found in sorted(preview_erasure(event, settings).items())
    ]
    if rows:
        print_table(("folder", "logs", "verdicts", "documents", "passages in logs"), rows)
    else:
        typer.echo("the topics hold nothing that it covers")
