"""Runs one stream worker until it is told to stop."""

import gc
import os
import threading
from signal import Signals
from typing import NoReturn

import faust
import structlog

from foldtune.kafka import create_topics
from foldtune.logs import configure_logs
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.worker.app import changelogs, create_app

_log = structlog.get_logger()
# Whoever stops workers, a container's host say, often waits for no more than ten.
_STOP_SECONDS = 8.0


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
    process = _Process(app, loglevel=settings.log_level, redirect_stdouts=False, override_logging=False, quiet=True)
    # It would be drawn between the lines of the log.
    process.spinner = None
    process.execute_from_commandline()


class _Process(faust.Worker):
    """Ends soon when it is told to: whatever is cut short is taken again from the places that the tables keep.

    Left to themselves, brokers that are gone hold Faust's farewell up for a minute, and an upload the interpreter.
    """

    def _schedule_shutdown(self, signal: Signals) -> None:
        if self._signal_stop_time:
            _end(f"told to stop again ({signal.name})")
        _log.info("stopping", signal=signal.name)
        # Not on the event loop: what holds the process up may hold the loop up too, or come after it.
        deadline = threading.Timer(_STOP_SECONDS, _end, [f"not stopped within {_STOP_SECONDS:.0f} s"])
        deadline.daemon = True
        deadline.start()
        super()._schedule_shutdown(signal)


def _end(reason: str) -> NoReturn:
    _log.warning("stop cut short", reason=reason)
    os._exit(0)


def collect_garbage_less_often() -> None:
    """Records come by the thousand and hold no cycles: looking for these after every 700 takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
