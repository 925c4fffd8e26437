"""``foldtune erase``."""

import time
import uuid
from datetime import datetime
from typing import Annotated

import typer
from pydantic import ValidationError

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.commands.output import print_table
from foldtune.commands.timestamps import TIMESTAMP_HELP, parse_timestamp
from foldtune.events import ErasureConfirmed, ErasureRequested, now
from foldtune.settings import Settings, load_settings
from foldtune.topic_reader import read
from foldtune.topics import Topic
from streams.commands.erased_artifacts import handle_artifacts
from streams.training_sets.erasure_preview import preview_erasure

app = typer.Typer(add_completion=False)

User = Annotated[str | None, typer.Option(metavar="ID", help="The logs of this user.")]
Log = Annotated[str | None, typer.Option(metavar="ID", help="This log and its feedback.")]
Conversation = Annotated[str | None, typer.Option(metavar="ID", help="The logs of this conversation.")]
Agent = Annotated[str | None, typer.Option(metavar="ID", help="The logs of this agent.")]
Document = Annotated[
    str | None, typer.Option(metavar="ID", help="This document of --folder or --all-folders, and its text in logs.")
]
Folder = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Alone: all of this folder. With another option: only what is in this folder."),
]
AllFolders = Annotated[bool, typer.Option("--all-folders", help="With --document: those with this id in every folder.")]
Before = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_timestamp,
        metavar="TIME",
        help=f"Only events that occurred until then (logs also bounds.future later, as clocks may be ahead);"
        f" default: now. {TIMESTAMP_HELP}.",
    ),
]


@app.command()
def erase(
    *,
    user: User = None,
    log: Log = None,
    conversation: Conversation = None,
    agent: Agent = None,
    document: Document = None,
    folder: Folder = None,
    all_folders: AllFolders = False,
    before: Before = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only count, by folder, the affected records in the topics. The training sets may hold fewer: what is"
            " too old or was erased before is not in them.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    artifacts: Annotated[
        bool,
        typer.Option(
            "--artifacts",
            help="Erase nothing from the training sets; find snapshots and dead letters of before that have it, and the"
            " models that were trained on it.",
        ),
    ] = False,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="With --artifacts: write those snapshots anew, delete those dead letters."),
    ] = False,
    wait: Annotated[
        int, typer.Option(metavar="SECONDS", min=0, help="Wait so long until every partition has confirmed it.")
    ] = 0,
    status: Annotated[
        str | None, typer.Option(metavar="ERASURE", help="Erase nothing; show who has confirmed an earlier erasure.")
    ] = None,
) -> None:
    """Erase a user, log, conversation, agent, document or folder from the training sets; cannot be undone.

    Snapshots from then on do not hold it. What is stored is cleared within worker.erasure_interval, each partition
    confirms it, and the brokers compact their changelog within three days more. It stays in the input topics, the dead
    letters, earlier snapshots and models that were trained on it: see --artifacts.
    """
    settings = load_settings()
    if status is not None:
        _show_confirmations(status, settings, wait)
        return
    event = erasure_event(
        {"user": user, "log": log, "conversation": conversation, "agent": agent, "document": document},
        folder,
        before,
        all_folders=all_folders,
    )
    if delete and not artifacts:
        raise UserError("--delete goes with --artifacts")
    if artifacts:
        handle_artifacts(event, settings, delete=delete, yes=yes)
        return
    if dry_run:
        _show_counts(event, settings)
        return
    if not yes:
        typer.confirm(f"Erase {described(event)}? This cannot be undone.", abort=True)
    with FoldtuneClient(settings) as client:
        client.erase(event)
    typer.echo(f"erasure {event.erasure_id} published to every partition")
    if wait:
        _show_confirmations(event.erasure_id, settings, wait)


def erasure_event(
    given: dict[str, str | None], folder: str | None, before: datetime | None, *, all_folders: bool
) -> ErasureRequested:
    """The erasure that a command's options describe."""
    subjects = [(subject, subject_id) for subject, subject_id in given.items() if subject_id is not None]
    if not subjects and folder is not None:
        subjects, folder = [("folder", folder)], None
    if len(subjects) != 1:
        raise UserError("give one of --user, --log, --conversation, --agent and --document, or --folder alone")
    subject, subject_id = subjects[0]
    if (all_folders and subject != "document") or (subject == "document" and all_folders == (folder is not None)):
        raise UserError("--document needs --folder or --all-folders: documents of two folders may have one id")
    until = before or now()
    return ErasureRequested.model_validate(
        {
            # Random: it stays in the confirmations, where guesses at the subject could be tested against a digest.
            "erasure_id": str(uuid.uuid4()),
            "occurred_at": until,
            "subject": subject,
            "subject_id": subject_id,
            "folder_id": folder,
        }
    )


def described(event: ErasureRequested) -> str:
    """What is erased, for people."""
    place = "" if event.folder_id is None else f" in folder {event.folder_id!r}"
    return f"{event.subject} {event.subject_id!r}{place}, up to {event.occurred_at:%Y-%m-%d %H:%M:%S} UTC"


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


def _show_confirmations(erasure_id: str, settings: Settings, seconds: int) -> None:
    """Print what every partition has confirmed, after waiting for them; exit code 1 if some have not."""
    partitions = settings.kafka.partitions
    # By the workers' app_id, each of which has sets of its own; these settings may not know it.
    confirmed: dict[str, dict[int, ErasureConfirmed]] = {}
    for record in read(
        settings.kafka,
        Topic.ERASURE_CONFIRMATIONS,
        follow=bool(seconds),
        deadline=time.monotonic() + seconds if seconds else None,
    ):
        event = _decoded(record.value)
        if event and event.erasure_id == erasure_id:
            confirmed.setdefault(event.app_id, {}).setdefault(event.partition, event)
            if seconds and all(len(found) >= partitions for found in confirmed.values()):
                break
    rows = [
        (str(number), f"{event.at:%Y-%m-%d %H:%M:%S}", str(event.records), app_id)
        for app_id, found in sorted(confirmed.items())
        for number, event in sorted(found.items())
    ]
    if rows:
        print_table(("partition", "applied at (UTC)", "records changed", "app_id"), rows)
    if missing := partitions - min(map(len, confirmed.values()), default=0):
        unknown = "" if confirmed else ": is its id right, and does a worker run?"
        typer.echo(f"{missing} of {partitions} partitions have not confirmed it yet{unknown}")
        raise typer.Exit(1)
    last = max(event.compacted_by for found in confirmed.values() for event in found.values())
    typer.echo(f"erased in all {partitions} partitions; compacted by the brokers by {last:%Y-%m-%d %H:%M} UTC")


def _decoded(value: bytes | None) -> ErasureConfirmed | None:
    try:
        return ErasureConfirmed.model_validate_json(value or b"")
    except ValidationError:
        return None
