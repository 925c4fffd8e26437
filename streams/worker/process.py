"""Runs one stream worker until a signal stops it."""

import gc
import os
from functools import partial
from signal import Signals
from typing import NoReturn

import faust
import structlog

from foldtune.logs import configure_logs
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from foldtune.shutdown import exit_after
from foldtune.topic_admin import create_topics, inspect_topics
from foldtune.topics import Topic
from foldtune.work_folders import remove_abandoned
from streams.partitions.local_store import exports_folder, open_store_folder
from streams.snapshots.export import EXPORT_PREFIX
from streams.worker.app import changelogs, create_app
from streams.worker.earlier_names import with_earlier_names

_log = structlog.get_logger()
# Docker kills a container 10 s after SIGTERM.
_SHUTDOWN_SECONDS = 8.0


def run(settings: Settings) -> None:
    """Create missing topics, join the group and work on the assigned partitions until SIGINT or SIGTERM.

    Raises:
        InvalidSettingsError: the object store ignores conditional writes; or an earlier release's state may be another
            installation's.
        PartitionCountError: an existing topic has another number of partitions than the settings.
        StoreInUseError: another worker uses the same data_dir.
        SystemExit: the worker has ended, with its exit code.
    """
    configure_logs(settings.log_level)
    settings = with_earlier_names(settings)
    # The changelogs too: the group's first assignment leaves out topics that do not exist yet.
    create_topics(settings.kafka, tuple(Topic), changelogs(settings))
    store = S3ObjectStore(settings.s3)
    store.check()
    # Held until the process ends.
    found = inspect_topics(settings.kafka, (), changelogs(settings))
    lock = open_store_folder(settings.worker, found.ids, settings.kafka.topic_prefix)
    remove_abandoned(exports_folder(settings.worker), EXPORT_PREFIX)
    app = create_app(settings, store)
    collect_garbage_less_often()
    process = _WorkerProcess(
        app, loglevel=settings.log_level, redirect_stdouts=False, override_logging=False, quiet=True
    )
    # It would be drawn into the log.
    process.spinner = None
    with lock:
        process.execute_from_commandline()


class _WorkerProcess(faust.Worker):
    """Ends within ``_SHUTDOWN_SECONDS`` of a signal; records in flight are redelivered from the offsets in the tables.

    Without a limit, Faust tries for a minute to leave the group of unreachable brokers, and the interpreter waits for
    the end of an upload.
    """

    def execute_from_commandline(self) -> NoReturn:
        try:
            super().execute_from_commandline()
        except SystemExit:
            # What Faust was starting when the signal came may have crashed.
            if self._signal_stop_time:
                raise SystemExit(0) from None
            raise

    def _schedule_shutdown(self, signal: Signals) -> None:
        if self._signal_stop_time:
            _log_forced(f"second signal ({signal.name})")
            os._exit(0)
        _log.info("stopping", signal=signal.name)
        exit_after(_SHUTDOWN_SECONDS, 0, partial(_log_forced, f"not stopped within {_SHUTDOWN_SECONDS:.0f} s"))
        super()._schedule_shutdown(signal)


def _log_forced(reason: str) -> None:
    _log.warning("shutdown forced", reason=reason)


def collect_garbage_less_often() -> None:
    """Records come by the thousand and hold no cycles: collecting after every 700 objects takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
