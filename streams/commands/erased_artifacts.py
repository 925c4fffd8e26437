"""``foldtune erase --artifacts``."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import typer
from pydantic import ValidationError

from foldtune.commands.output import print_table
from foldtune.events import ErasureRequested, FineTuneStatus
from foldtune.object_store import S3ObjectStore
from foldtune.settings import KafkaSettings, Settings
from foldtune.topic_reader import read
from foldtune.topics import Topic
from streams.publishing.dead_letter_erasure import delete_letters, letters_that_name
from streams.publishing.dead_letter_replay import DeadLetter
from streams.snapshots.past_artifacts import AffectedModel, AffectedSnapshot, PastArtifacts, Request
from streams.training_sets.erasure_preview import erasures_of, preview_erasure
from streams.training_sets.erasures import Erasures


def handle_artifacts(event: ErasureRequested, settings: Settings, *, delete: bool, yes: bool) -> None:
    """Show what was made before an erasure and has its subject, and delete it; exit code 1 if some of it is left."""
    past = PastArtifacts(S3ObjectStore(settings.s3), _erasures(event, settings), _ended_requests(settings.kafka))
    snapshots, evaluations = list(past.snapshots()), past.evaluations()
    models, letters = past.models(snapshots), letters_that_name(event, settings.kafka)
    _show(snapshots, models, letters, evaluations)
    if unknown := past.trainings_without_snapshot():
        typer.echo(f"{unknown} trainings had snapshots that are deleted: their models may have it, too", err=True)
    if not delete or not (snapshots or letters or evaluations):
        return
    if not yes:
        typer.confirm(
            "Write these snapshots and evaluations anew, and delete checkpoints and dead letters?", abort=True
        )
    if models:
        typer.echo("keep this list of models: it is made from these snapshots", err=True)
    ended = [snapshot for snapshot in snapshots if snapshot.ended]
    for snapshot in ended:
        past.erase(snapshot)
    for key in evaluations:
        past.erase_evaluation(key)
    unreadable = [key for snapshot in ended for key in snapshot.unreadable]
    unreadable += [key for key, count in evaluations.items() if count is None]
    again = delete_letters(letters, settings.kafka) if letters else 0
    typer.echo(
        f"{sum(not snapshot.unreadable for snapshot in ended)} snapshots and"
        f" {sum(count is not None for count in evaluations.values())} evaluations written anew,"
        f" {len(letters)} dead letters deleted, {again} others published again"
    )
    if waiting := len(snapshots) - len(ended):
        typer.echo(f"{waiting} snapshots are in use: repeat this when their requests have ended", err=True)
    for key in unreadable:
        typer.echo(f"cannot be read, so may have it: {key!r}; repair or delete it, and repeat this", err=True)
    if waiting or unreadable:
        raise typer.Exit(1)


def _erasures(event: ErasureRequested, settings: Settings) -> Erasures:
    """The erasure, and of a user also that of each log in the topics: a snapshot has no user ids."""
    if event.subject != "user":
        return erasures_of(settings, event)
    affected = preview_erasure(event, settings)
    if not affected:
        typer.echo("chat-logs has no log of this user (any more): snapshots can be searched by --log only", err=True)
    logs = (
        event.model_copy(update={"subject": "log", "subject_id": log_id, "folder_id": folder_id})
        for folder_id, ids in affected.items()
        for log_id in ids.logs
    )
    return erasures_of(settings, *logs)


def _ended_requests(settings: KafkaSettings) -> set[Request]:
    ended: dict[Request, bool] = {}
    for record in read(settings, Topic.FINE_TUNE_STATUS):
        with suppress(ValidationError):
            status = FineTuneStatus.model_validate_json(record.value or b"")
            if status.state.terminal:
                # Of one that was cancelled, the training may go on for others.
                ended[status.model, status.request_id] = not status.run_continues
    return {request for request, is_over in ended.items() if is_over}


def _show(
    snapshots: Sequence[AffectedSnapshot],
    models: Sequence[AffectedModel],
    letters: Sequence[DeadLetter],
    evaluations: Mapping[str, int | None],
) -> None:
    if snapshots:
        columns = ("snapshot of", "rows", "unreadable files", "checkpoints", "in use")
        print_table(columns, [_snapshot_row(snapshot) for snapshot in snapshots])
    if models:
        print_table(("trained on them", "version", "request", "state"), [_model_row(model) for model in models])
    if letters:
        print_table(
            ("dead letter", "rejected at (UTC)", "error"),
            [(letter.id, f"{letter.at:%Y-%m-%d %H:%M:%S}", letter.error) for letter in letters],
        )
    if evaluations:
        rows = [(key, "unreadable" if count is None else str(count)) for key, count in evaluations.items()]
        print_table(("evaluation", "questions"), rows)
    if not (snapshots or letters or evaluations):
        typer.echo("nothing of before has it")


def _snapshot_row(snapshot: AffectedSnapshot) -> Sequence[str]:
    rows, unreadable = sum(snapshot.files.values()), len(snapshot.unreadable)
    in_use = "no" if snapshot.ended else "yes"
    return snapshot.request, str(rows), str(unreadable), str(len(snapshot.checkpoints)), in_use


def _model_row(model: AffectedModel) -> Sequence[str]:
    request = model.job.request
    state = "newest promoted" if model.is_newest else "published" if model.published else "not published"
    return request.model, model.job.version, request.request_id, state
