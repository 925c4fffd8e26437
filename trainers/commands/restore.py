"""``foldtune restore``."""

from typing import Annotated

import typer

from foldtune.commands.output import print_event
from foldtune.events import TrainingJob
from foldtune.object_store import S3ObjectStore
from foldtune.settings import load_settings
from trainers.data import restore
from trainers.data.snapshot import Snapshot, read_snapshot

app = typer.Typer(
    add_completion=False, help="Restore events from the snapshot of a training, as JSON Lines.", no_args_is_help=True
)

Job = Annotated[str, typer.Argument(help="The training's s3://BUCKET/jobs/…/job.json; it names the snapshot.")]


@app.command()
def documents(job: Job) -> None:
    """Print the documents; pipe them into: foldtune import documents -"""
    snapshot = _snapshot(job)
    for event in restore.documents(snapshot.documents, snapshot.manifest.created_at):
        print_event(event)


@app.command()
def logs(job: Job) -> None:
    """Print the examples as logs that yield the same examples; pipe them into: foldtune import logs -"""
    for event in restore.logs(_snapshot(job).examples):
        print_event(event)


def _snapshot(uri: str) -> Snapshot:
    store = S3ObjectStore(load_settings().s3)
    job = TrainingJob.model_validate_json(store.get(store.key(uri)))
    return read_snapshot(store, job.snapshot_uri, job.snapshot_sha256)
