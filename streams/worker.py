"""Runs one stream worker until it is told to stop."""

import gc
import sys

import faust

from infra.kafka import create_topics
from infra.logs import configure_logs
from infra.objects import S3ObjectStore
from infra.settings import Settings
from streams.app import changelogs, create_app
from streams.topics import Topic


def run(settings: Settings) -> None:
    """Create missing topics, take a share of the partitions and work on it until SIGINT or SIGTERM.

    Raises:
        PartitionCountError: the topics that are there have another number of partitions than the settings say.
        SystemExit: the worker has ended, with its exit code.
    """
    configure_logs(settings)
    # The changelogs too: were the group's first assignment made before they are known, it would leave them out.
    create_topics(settings.kafka, tuple(Topic), changelogs(settings))
    app = create_app(settings, S3ObjectStore(settings.s3))
    collect_garbage_less_often()
    settings.worker.data_dir.mkdir(parents=True, exist_ok=True)
    on_terminal = sys.stdout.isatty()
    worker = faust.Worker(
        app, loglevel=settings.log_level, redirect_stdouts=False, override_logging=False, quiet=not on_terminal
    )
    if not on_terminal:
        worker.spinner = None
    worker.execute_from_commandline()


def collect_garbage_less_often() -> None:
    """Records come by the thousand and hold no cycles: looking for these after every 700 takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
