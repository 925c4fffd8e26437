"""``foldtune launcher``."""

import signal
import threading
from typing import Annotated

import structlog
import typer

from foldtune.logs import configure_logs
from foldtune.object_store import S3ObjectStore
from foldtune.settings import load_settings
from foldtune.shutdown import call_on_signal, exit_after
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from foldtune.work_folders import remove_abandoned
from launchers.job_consumer import END_SECONDS, JobConsumer, log_left
from launchers.local.launcher import LocalLauncher
from trainers.environment import WORK_PREFIX

log = structlog.get_logger(__name__)

app = typer.Typer(add_completion=False)


@app.command()
def launcher(
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Jobs that run at a time.")] = 1,
) -> None:
    """Run training jobs on this machine until SIGINT or SIGTERM; the next launcher runs interrupted jobs again."""
    settings = load_settings()
    configure_logs(settings.log_level)
    reports = (Topic.TRAINING_REPORTS, Topic.FINE_TUNE_STATUS)
    create_topics(settings.kafka, (Topic.TRAINING_JOBS, *reports, Topic.DEAD_LETTERS))
    store = S3ObjectStore(settings.s3)
    store.check()
    remove_abandoned(settings.trainer.work_dir, WORK_PREFIX)
    local = LocalLauncher(settings, store)
    if code := run_until_signal(JobConsumer(settings, store, local, parallel=parallel), local):
        raise typer.Exit(code)


def run_until_signal(job_consumer: JobConsumer, local: LocalLauncher) -> int:
    """Run until SIGINT or SIGTERM, and end within ``END_SECONDS`` of it; the exit code.

    The trainings learn of it at once, and each call to the brokers or the object store may hang for longer: whatever is
    not on record by then is left to the next launcher, and this process dies with its trainings.
    """
    stop = threading.Event()
    received: list[signal.Signals] = []

    def code() -> int:
        return 130 if signal.SIGINT in received else 0

    def end(number: signal.Signals) -> None:
        received.append(number)
        exit_after(END_SECONDS, code(), last_words)
        stop.set()
        local.interrupt_all()
        log.info("stopping", signal=number.name, running=job_consumer.watched())

    def last_words() -> None:
        for request_id in job_consumer.watched():
            log_left(request_id, recorded=False)
        log.warning("shutdown forced", reason=f"not stopped within {END_SECONDS:.0f} s")

    numbers = (signal.SIGINT, signal.SIGTERM)
    call_on_signal(numbers, end)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    job_consumer.run(stop)
    return code()
