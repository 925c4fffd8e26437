"""``foldtune launcher``."""

import signal
import threading
from types import FrameType
from typing import Annotated

import typer

from foldtune.kafka import create_topics
from foldtune.logs import configure_logs
from foldtune.object_store import S3ObjectStore
from foldtune.settings import load_settings
from foldtune.topics import Topic
from launchers.job_consumer import JobConsumer
from launchers.local.launcher import LocalLauncher

app = typer.Typer(add_completion=False)


@app.command()
def launcher(
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Jobs that run at a time.")] = 1,
) -> None:
    """Run training jobs on this machine until SIGINT or SIGTERM; the next launcher runs interrupted jobs again."""
    settings = load_settings()
    configure_logs(settings.log_level)
    stop = threading.Event()
    received: list[int] = []

    def request_stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        stop.set()

    reports = (Topic.TRAINING_REPORTS, Topic.FINE_TUNE_STATUS)
    create_topics(settings.kafka, (Topic.TRAINING_JOBS, *reports, Topic.DEAD_LETTERS))
    store = S3ObjectStore(settings.s3)
    store.check()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    JobConsumer(settings, store, LocalLauncher(settings, store), parallel=parallel).run(stop)
    if signal.SIGINT in received:
        raise typer.Exit(130)
