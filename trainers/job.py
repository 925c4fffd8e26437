"""Runs a training job: ``python -m trainers.job s3://BUCKET/…/job.json``, on several GPUs with ``trainers.torchrun``.

Exits with one of ``trainers.exit_codes``. The trainer itself reports an impossible job as failed. The launcher retries
or reports everything else, including a job that cannot be read, since its request is unknown here.
"""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
import torch
from pydantic import ValidationError

from foldtune.errors import TRANSIENT_ERRORS, ObjectMissingError
from foldtune.events import State, TrainingJob
from foldtune.kafka import Publisher
from foldtune.logs import configure_logs
from foldtune.object_store import ObjectStore, S3ObjectStore
from foldtune.reasons import explain
from foldtune.secrets import kafka_with_secrets
from foldtune.settings import Settings, load_settings
from foldtune.shutdown import call_on_signal, exit_after
from foldtune.work_folders import work_folder
from trainers.engine import ranks
from trainers.engine.embedder import run_worker_rank
from trainers.environment import WORK_PREFIX
from trainers.errors import BadJobError, InfrastructureFailedError, InterruptedTrainingError, KnobError, TrainerError
from trainers.exit_codes import ExitCode
from trainers.loop.checkpoints import Checkpoints
from trainers.loop.training import reproducible
from trainers.pipeline import produce_model
from trainers.publishing.model_publisher import announce_model, is_published
from trainers.publishing.reporting import EventSink, KafkaEventSink, Reporter
from trainers.retrying_store import RetryingStore
from trainers.role import role_session

log = structlog.get_logger()

# From SIGTERM to the end of the process, whatever it waits for. AWS Batch, Kubernetes and the local launcher kill after
# half a minute.
END_SECONDS = 25.0


def main(arguments: list[str]) -> ExitCode:
    """Run the job whose URI is the only argument."""
    signal.signal(signal.SIGTERM, _raise_interrupted)
    configure_logs()
    failure = "training not started"
    try:
        (uri,) = arguments
        settings = load_settings()
        configure_logs(settings.log_level)
        ranks.init_process_group(settings.trainer.max_duration)
        if ranks.rank() == 0:
            code = _run_rank_0(uri, settings)
        else:
            failure = "worker rank failed"
            code = _run_worker_rank(settings)
        failure = "process group not ended"
        ranks.write_exit_code(code)
        # After a failure rank 0 does not wait for the other ranks: they notice that it is gone.
        if code is ExitCode.DONE:
            ranks.destroy_process_group()
    except (TrainerError, ValueError, OSError, *TRANSIENT_ERRORS) as error:
        log.error(failure, arguments=arguments, rank=ranks.rank(), error=str(error))  # noqa: TRY400 - for people
        return ExitCode.TRY_AGAIN
    return code


def _run_rank_0(uri: str, settings: Settings) -> ExitCode:
    s3 = S3ObjectStore(settings.s3)
    s3.check()
    job = read_job(RetryingStore(s3), uri)
    if role := settings.trainer.role_arn:
        s3 = S3ObjectStore(settings.s3, role_session(role, job.request, settings.s3.region))
    store = RetryingStore(s3)
    # A process runs one job: from here on, every log line has its request.
    structlog.contextvars.bind_contextvars(request_id=job.request.request_id)
    with KafkaEventSink(partial(_publisher, settings)) as sink:
        return run(job, settings, store, sink)


@contextmanager
def _publisher(settings: Settings) -> Iterator[Publisher]:
    with kafka_with_secrets(settings) as kafka, Publisher(kafka) as publisher:
        yield publisher


def _run_worker_rank(settings: Settings) -> ExitCode:
    # torchrun sends SIGTERM to all ranks at once, but rank 0 needs the others until its checkpoint is saved.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with _work_dir(settings) as work_dir, reproducible(seed=0):
        run_worker_rank(work_dir)
    return ExitCode.DONE


def read_job(store: ObjectStore, uri: str) -> TrainingJob:
    """The job at ``uri``.

    Raises:
        BadJobError: it does not exist, or is not a valid job.
    """
    try:
        return TrainingJob.model_validate_json(store.get(store.key(uri)))
    except ValidationError as error:
        raise BadJobError(uri, "; ".join(explain(error))) from error
    except (ObjectMissingError, ValueError) as error:
        raise BadJobError(uri, error) from error


def run(job: TrainingJob, settings: Settings, store: ObjectStore, sink: EventSink) -> ExitCode:
    """Train, publish and report ``job``; if its model is published already, only announce it again."""
    reporter = Reporter(sink, job)
    try:
        _run(job, settings, store, reporter)
    except TrainerError as error:
        log.error("training failed", error=str(error), retryable=error.retryable)  # noqa: TRY400 - for people
        if error.retryable:
            if not isinstance(error, InterruptedTrainingError):
                _report_error(reporter, str(error))
            return error.exit_code
        try:
            reporter.publish_state(State.FAILED, reasons=(str(error),))
        except TrainerError as unreported:
            log.error("failure not reported", error=str(unreported))  # noqa: TRY400 - for people
            return unreported.exit_code
        return error.exit_code
    except Exception as error:
        _report_error(reporter, f"{type(error).__name__}: {error}")
        raise
    return ExitCode.DONE


def _report_error(reporter: Reporter, reason: str) -> None:
    """Tell why this attempt failed: whether another follows is the launcher's to say, which sees the exit code only."""
    reporter.publish_state(State.RUNNING, reasons=(reason,))


def _run(job: TrainingJob, settings: Settings, store: ObjectStore, reporter: Reporter) -> None:
    try:
        if is_published(job, store):
            announce_model(job, store, reporter)
            Checkpoints(job, store, settings.trainer.checkpoint_interval).discard()
            return
        with _work_dir(settings) as work_dir:
            produce_model(job, settings, store, reporter, work_dir)
    except torch.OutOfMemoryError as error:
        layers = job.request.training.trainable_layers
        raise KnobError(f"training.trainable_layers {layers} needs more memory; fewer need less: {error}") from error
    # OSError: of this machine's disk, where another may do.
    except (*TRANSIENT_ERRORS, OSError) as error:
        raise InfrastructureFailedError(error) from error


@contextmanager
def _work_dir(settings: Settings) -> Iterator[Path]:
    with work_folder(settings.trainer.work_dir, WORK_PREFIX) as folder:
        # Also what libraries write: nothing of a training must be left elsewhere if this process is killed.
        former, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = former


def _raise_interrupted(number: int, _: FrameType | None) -> None:
    raise InterruptedTrainingError(signal.Signals(number).name)


def _bound_end(_: signal.Signals) -> None:
    exit_after(END_SECONDS, ExitCode.TRY_AGAIN, _give_up)


def _give_up() -> None:
    log.error("training did not end in time after SIGTERM, exiting", seconds=END_SECONDS)
    ranks.write_exit_code(ExitCode.TRY_AGAIN)


if __name__ == "__main__":
    call_on_signal((signal.SIGTERM,), _bound_end)
    sys.exit(main(sys.argv[1:]))
