"""Trainings whose S3 server and brokers fail or hang, with the real client and through real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from foldtune.events import ModelReference, State, TrainingJob
from foldtune.knobs import TrainingKnobs
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from infra.local.stack import LocalServers
from tests.jobs import RecordingEventSink, put_job
from tests.s3_proxy import HUNG, S3Proxy
from tests.support import environment, settings_of
from tests.unit.trainers.evaluation.conftest import evaluation, measures
from tests.unit.trainers.test_incumbent import put_version
from tests.unit.trainers.test_job import DOCUMENTS, EXAMPLES
from trainers import retrying_store
from trainers.data.dataset import Dataset, split
from trainers.evaluation.evaluation_set import EvaluationSet
from trainers.exit_codes import ExitCode
from trainers.job import END_SECONDS, run
from trainers.pipeline import load_incumbent, measure_incumbent
from trainers.publishing.reporting import Reporter
from trainers.publishing.results import Baseline
from trainers.retrying_store import RetryingStore


@dataclass(frozen=True)
class System:
    """An S3 server behind a proxy, a job in it, and the variables of a trainer that uses both."""

    s3: S3Proxy
    store: S3ObjectStore
    job: TrainingJob
    variables: dict[str, str]

    @property
    def settings(self) -> Settings:
        return settings_of(self.variables)


@pytest.fixture
def system(local_servers: LocalServers, tables: Any, tiny_folder: Path, tmp_path: Path) -> Iterator[System]:
    trainer = {"FOLDTUNE_TRAINER__MODEL_FOLDERS": json.dumps([str(tiny_folder)])}
    with S3Proxy(settings_of(local_servers.environment).s3) as s3:
        variables = environment(local_servers, tmp_path, FOLDTUNE_S3__ENDPOINT_URL=s3.endpoint_url, **trainer)
        store = S3ObjectStore(settings_of(variables).s3)
        base, knobs = ModelReference(uri=tiny_folder.as_uri()), TrainingKnobs(batch_size=2, epochs=1)
        job = put_job(store, tables(EXAMPLES, DOCUMENTS), base_model=base, training=knobs)
        yield System(s3, store, job, variables)
        s3.heal()
        for prefix in ("models/m/", "checkpoints/", "snapshots/r/"):
            for key in store.list(prefix):
                store.delete(key)


def uploads(method: str, path: str) -> bool:
    return method == "PUT" and "/models/" in path


def test_expired_credentials_cost_a_repetition_or_another_run_but_no_training(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying_store, "PATIENCE_SECONDS", 1)
    store, sink = RetryingStore(system.store), RecordingEventSink()
    system.s3.fail("ExpiredToken", only=uploads)
    assert run(system.job, system.settings, store, sink) == ExitCode.TRY_AGAIN
    assert (sink.statuses[-1].state, sink.statuses[-2].state) == (State.RUNNING, State.EVALUATING)
    assert "ExpiredToken" in sink.statuses[-1].reasons[0]
    assert not store.exists("models/m/000001/manifest.json")
    # In the next run they expire, too, and are renewed in time.
    monkeypatch.setattr(retrying_store, "PATIENCE_SECONDS", 60)
    failed = len(system.s3.failed)
    system.s3.fail("ExpiredToken", only=uploads, times=2)
    again = RecordingEventSink()
    assert run(system.job, system.settings, store, again) == ExitCode.DONE
    assert len(system.s3.failed) == failed + 2
    assert not [status for status in again.statuses if status.progress]
    assert again.statuses[-1].state is State.COMPLETED


def test_an_incumbent_that_may_not_be_read_leaves_the_base_model_as_the_baseline(
    system: System, tiny_folder: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    put_version(system.store, {path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    system.s3.fail("AccessDenied", only=lambda _, path: "/models/m/000001/" in path)
    reporter = Reporter(RecordingEventSink(), system.job)
    measured_on = EvaluationSet(small_dataset, split(small_dataset), [], None, seed=0)
    base = Baseline("the base model", measures(evaluation([0.0] * len(measured_on.parts.held_out))))
    store = RetryingStore(system.store)
    incumbent = load_incumbent(system.job, store, reporter, tmp_path)
    found = measure_incumbent(incumbent, reporter, base=base, measured_on=measured_on)
    assert found.measures is base.measures
    (warning,) = reporter.warnings
    assert "AccessDenied" in warning


@contextmanager
def hung_brokers() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def trainer(job_uri: str, variables: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        command = [sys.executable, "-m", "trainers.job", job_uri]
        process = subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_step(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while '"training step"' not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_trainer_ends_soon_after_sigterm_though_its_servers_hang(system: System, tmp_path: Path) -> None:
    training = TrainingKnobs(batch_size=2, epochs=100)
    request = system.job.request.model_copy(update={"training": training})
    job = system.job.model_copy(update={"request": request})
    system.store.put("jobs/r/job.json", job.model_dump_json().encode())
    log = tmp_path / "log"
    with (
        hung_brokers() as brokers,
        trainer(
            system.store.uri("jobs/r/job.json"),
            system.variables | {"FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS": brokers},
            log,
        ) as process,
    ):
        # Though none of its reports is acknowledged.
        await_step(process, log)
        system.s3.fail(HUNG)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_SECONDS + 5) == ExitCode.TRY_AGAIN, log.read_text()
        seconds = time.monotonic() - began
    assert seconds < END_SECONDS + 2, log.read_text()
    assert "The training was interrupted: SIGTERM" in log.read_text()
