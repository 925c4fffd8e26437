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
    user: Annotated[str | None, typer.Option(metavar="ID", help="The logs of this user.")] = None,
    log: Annotated[str | None, typer.Option(metavar="ID", help="This log and its feedback.")] = None,
    conversation: Annotated[str | None, typer.Option(metavar="ID", help="The logs of this conversation.")] = None,
    document: Annotated[str | None, typer.Option(metavar="ID", help="This document, and its text in logs.")] = None,
    before: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_timestamp,
            metavar="TIME",
            help=f"Only events that occurred until then; default: now. {TIMESTAMP_HELP}.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only count, by folder, the affected records in the topics. The training sets may hold fewer: what is"
            " too old or was erased before is not in them.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase a user, a log, a conversation or a document from the training sets; cannot be undone.

    Erased data is removed from the training sets, their changelog and later snapshots. It stays in the input topics,
    the dead letters, earlier snapshots and models that were trained on it.
    """
    given = {"user": user, "log": log, "conversation": conversation, "document": document}
    subjects = [(subject, subject_id) for subject, subject_id in given.items() if subject_id is not None]
    if len(subjects) != 1:
        raise UserError("give one of --user, --log, --conversation and --document")
    event = _event(*subjects[0], before or now())
    settings = load_settings()
    if dry_run:
        _show_counts(event, settings)
        return
    if not yes:
        subject = f"{event.subject} {event.subject_id!r}, up to {event.occurred_at:%Y-%m-%d %H:%M:%S} UTC"
        typer.confirm(f"Erase {subject}? This cannot be undone.", abort=True)
    with FoldtuneClient(settings) as client:
        client.erase(event)
    typer.echo(f"erasure {event.erasure_id} published to every partition")


def _event(subject: str, subject_id: str, until: datetime) -> ErasureRequested:
    # The id follows from subject and time, so a repeated command is the same erasure.
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
        (
            folder_id,
            *(str(len(ids)) for ids in (affected.logs, affected.feedback, affected.documents, affected.passages)),
        )
        for folder_id, affected in sorted(preview_erasure(event, settings).items())
    ]
    if rows:
        print_table(("folder", "logs", "feedback", "documents", "passages in logs"), rows)
    else:
        typer.echo("nothing to erase in the topics")
