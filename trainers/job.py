"""Runs a training job: ``python -m trainers.job s3://BUCKET/…/job.json``, on several GPUs with ``trainers.torchrun``.

The exit code says how it ended (``trainers.errors.ExitCode``). A job that can never succeed is reported as failed from
here; what may succeed when it is started again is the launcher's to report, and so is a job that cannot be read: of
what request it is, nobody here can say.
"""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import structlog
import torch
from pydantic import ValidationError

from foldtune.errors import TRANSIENT_ERRORS, ObjectMissingError
from foldtune.events import State, TrainingJob
from foldtune.kafka import Publisher
from foldtune.object_store import ObjectStore, S3ObjectStore
from foldtune.secrets import kafka_with_secrets
from foldtune.settings import Settings, load_settings
from trainers.engine import ranks
from trainers.engine.embedder import follow
from trainers.errors import BadJobError, InfrastructureFailedError, InterruptedTrainingError, KnobError, TrainerError
from trainers.exit_codes import ExitCode
from trainers.loop.training import reproducible
from trainers.pipeline import produce_model
from trainers.publishing.model_publisher import publish_again, published
from trainers.publishing.reporting import EventSink, KafkaEventSink, Reporter

log = structlog.get_logger()


def main(arguments: list[str]) -> ExitCode:
    """Run the job whose address is the only argument."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        (uri,) = arguments
        settings = load_settings()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(settings.log_level))
        ranks.join(settings.trainer.max_duration)
        code = _lead(uri, settings) if ranks.rank() == 0 else _follow(settings)
        ranks.leave_word(code)
        # After a failure nobody is waited for: the others notice that rank 0 is gone.
        if code is ExitCode.DONE:
            ranks.leave()
    except (TrainerError, ValueError, *TRANSIENT_ERRORS) as error:
        log.error("the training did not begin or could not be reported", reason=str(error))  # noqa: TRY400 - for people
        return ExitCode.TRY_AGAIN
    return code


def _lead(uri: str, settings: Settings) -> ExitCode:
    store = S3ObjectStore(settings.s3)
    job = read_job(store, uri)
    with kafka_with_secrets(settings) as kafka, Publisher(kafka) as publisher:
        return run(job, settings, store, KafkaEventSink(publisher))


def _follow(settings: Settings) -> ExitCode:
    # torchrun asks all ranks to end at once, but rank 0 needs the others until the step is done and kept.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with _work_dir(settings) as work_dir, reproducible(seed=0):
        follow(work_dir)
    return ExitCode.DONE


def read_job(store: ObjectStore, uri: str) -> TrainingJob:
    """The job at ``uri``.

    Raises:
        BadJobError: there is none, or it is not readable.
    """
    try:
        return TrainingJob.model_validate_json(store.get(store.key(uri)))
    except (ObjectMissingError, ValidationError, ValueError) as error:
        raise BadJobError(uri, error) from error


def run(job: TrainingJob, settings: Settings, store: ObjectStore, announcer: EventSink) -> ExitCode:
    """Train, publish and report ``job``; the same job again only publishes again."""
    reporter = Reporter(announcer, job)
    try:
        _run(job, settings, store, reporter)
    except TrainerError as error:
        log.error("training failed", request_id=job.request.request_id, reason=str(error), retryable=error.retryable)  # noqa: TRY400 - for people
        if not error.retryable:
            reporter.state(State.FAILED, reasons=(str(error),))
        return error.exit_code
    return ExitCode.DONE


def _run(job: TrainingJob, settings: Settings, store: ObjectStore, reporter: Reporter) -> None:
    try:
        if published(job, store):
            publish_again(job, store, reporter)
            return
        with _work_dir(settings) as work_dir:
            produce_model(job, settings, store, reporter, work_dir)
    except torch.OutOfMemoryError as error:
        layers = job.request.training.trainable_layers
        raise KnobError(f"training.trainable_layers {layers} needs more memory; fewer need less: {error}") from error
    except TRANSIENT_ERRORS as error:
        raise InfrastructureFailedError(error) from error


@contextmanager
def _work_dir(settings: Settings) -> Iterator[Path]:
    settings.trainer.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=settings.trainer.work_dir) as folder:
        yield Path(folder)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise InterruptedTrainingError(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
