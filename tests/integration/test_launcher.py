"""The launcher with a real Kafka and a real S3 server: statuses, retries, cancellation, dead letters, crashes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from kafka.structs import TopicPartition

from foldtune import dead_letters
from foldtune.events import FineTuneRequested, FineTuneStatus, ModelReference, State, TrainingJob, now
from foldtune.kafka import Publisher, consumer
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings, settings_environment
from foldtune.topic_reader import read
from foldtune.topics import Topic
from infra.local.stack import LocalServers
from launchers.job_consumer import GROUP, JobConsumer
from launchers.local.launcher import LocalLauncher
from launchers.port import Ending, Launcher, RunOutcome, job_segment
from tests.fakes.launcher import FakeLauncher

# Of all jobs: an old one is overdue.
MOMENT = now()
PATIENCE = timedelta(seconds=60)
RETRY = RunOutcome(ending=Ending.FAILED, retryable=True, reasons=("no luck",))

LAUNCHER = """
import sys
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from launchers.commands import run_until_signal
from launchers.job_consumer import JobConsumer
from launchers.local.launcher import LocalLauncher
settings = Settings()
store = S3ObjectStore(settings.s3)
launcher = LocalLauncher(settings, store, command=(sys.executable, "-c", sys.argv[1]))
sys.exit(run_until_signal(JobConsumer(settings, store, launcher), launcher))
"""
# Takes some seconds to save its checkpoint, like a trainer; tells so in the folder that is put in.
SLOW_TO_END = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(3)
    pathlib.Path("FOLDER", "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("FOLDER", "began").touch()
time.sleep(600)
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A bucket for each test, since all tests use the same job names."""
    s3 = settings.s3.model_copy(update={"bucket": f"b-{uuid4().hex}"})
    secret = s3.secret_access_key.get_secret_value() if s3.secret_access_key else None
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        region_name=s3.region,
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=secret,
    )
    client.create_bucket(Bucket=s3.bucket)
    return settings.model_copy(update={"s3": s3})


def make_job(request_id: str) -> TrainingJob:
    """A job whose contents no trainer reads."""
    return TrainingJob(
        request=FineTuneRequested(request_id=request_id, model="support", requested_at=MOMENT),
        base_model=ModelReference(uri="hf://org/model"),
        snapshot_uri="s3://bucket/snapshots/manifest.json",
        snapshot_sha256="0" * 64,
        output_uri="s3://bucket/models/m",
        version="v1",
        published_at=MOMENT,
        max_seconds=60,
    )


def publish(settings: Settings, *jobs: TrainingJob) -> None:
    """Publish jobs like the coordinator."""
    with Publisher(settings.kafka) as publisher:
        for job in jobs:
            publisher.publish(Topic.TRAINING_JOBS, job, key=job.request.request_id, partition_by=job.request.model)


@contextmanager
def running_launcher(settings: Settings, launcher: Launcher, *, parallel: int = 1) -> Iterator[None]:
    """A job consumer in a thread."""
    stop = threading.Event()
    job_consumer = JobConsumer(settings, S3ObjectStore(settings.s3), launcher, parallel=parallel)
    thread = threading.Thread(target=job_consumer.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while not condition():
        assert time.monotonic() < deadline, f"condition not met within {PATIENCE}"
        time.sleep(0.05)


def committed(settings: Settings) -> int:
    """The number of job events that the launchers have committed."""
    name = Topic.TRAINING_JOBS.named(settings.kafka.topic_prefix)
    with consumer(settings.kafka, group=f"{settings.kafka.topic_prefix}{GROUP}") as client:
        return sum(client.committed(TopicPartition(name, number)) or 0 for number in range(settings.kafka.partitions))


def reports(settings: Settings) -> list[FineTuneStatus]:
    """The reports to the coordinator."""
    return [FineTuneStatus.model_validate_json(record.value) for record in read(settings.kafka, Topic.TRAINING_REPORTS)]


def outcome(settings: Settings, job: TrainingJob, attempt: int) -> dict[str, object]:
    """The recorded outcome of an attempt."""
    store = S3ObjectStore(settings.s3)
    content: dict[str, object] = json.loads(store.get(f"jobs/{job_segment(job)}/attempt-{attempt}.outcome.json"))
    return content


def test_a_job_fails_after_its_last_attempt_and_its_offset_is_committed(settings: Settings) -> None:
    job = make_job("r-1")
    publish(settings, job)
    with running_launcher(settings, FakeLauncher(RETRY, RETRY)):
        eventually(lambda: committed(settings) == 1)
    statuses = reports(settings)
    assert statuses[-1].state is State.FAILED
    assert statuses[-1].retryable
    assert statuses[-1].reasons == ("no luck",)
    assert State.SUBMITTED in {status.state for status in statuses}


def test_a_job_delivered_twice_runs_once(settings: Settings) -> None:
    job = make_job("r-1")
    publish(settings, job, job)
    with running_launcher(settings, launcher := FakeLauncher(), parallel=2):
        eventually(lambda: committed(settings) == 2)
    assert len(launcher.submitted) == 1


def test_jobs_run_concurrently_up_to_the_limit(settings: Settings) -> None:
    publish(settings, *(make_job(f"r-{number}") for number in range(3)))
    with running_launcher(settings, launcher := FakeLauncher(None, None, None), parallel=2):
        eventually(lambda: len(launcher.submitted) == 2)
        launcher.end(launcher.submitted[1], RunOutcome(ending=Ending.SUCCEEDED))
        eventually(lambda: len(launcher.submitted) == 3)
        assert committed(settings) == 0
        launcher.end(launcher.submitted[0], RunOutcome(ending=Ending.SUCCEEDED))
        eventually(lambda: committed(settings) == 2)


@pytest.mark.parametrize("state", [State.CANCELLED, State.FAILED])
def test_the_end_of_a_request_terminates_its_run_and_prevents_a_waiting_one(settings: Settings, state: State) -> None:
    publish(settings, make_job("r-1"), make_job("r-2"))
    with running_launcher(settings, launcher := FakeLauncher(None)), Publisher(settings.kafka) as publisher:
        eventually(lambda: len(launcher.submitted) == 1)
        for request_id in ("r-2", "r-1"):
            status = FineTuneStatus(request_id=request_id, model="support", state=state, at=now())
            publisher.publish(Topic.FINE_TUNE_STATUS, status, key=request_id, partition_by="support")
        eventually(lambda: committed(settings) == 2)
    assert [run.job.request.request_id for run in launcher.submitted] == ["r-1"]
    assert outcome(settings, make_job("r-1"), 1)["ending"] == "cancelled"


def test_no_job_of_an_ended_request_starts_whatever_another_model_calls_its_own(settings: Settings) -> None:
    publish(settings, make_job("r-1"), make_job("r-2"))
    with Publisher(settings.kafka) as publisher:
        for model, request_id in (("another", "r-2"), ("support", "r-1")):
            status = FineTuneStatus(request_id=request_id, model=model, state=State.FAILED, at=now())
            publisher.publish(Topic.FINE_TUNE_STATUS, status, key=request_id, partition_by=model)
    with running_launcher(settings, launcher := FakeLauncher()):
        eventually(lambda: committed(settings) == 2)
    assert [run.job.request.request_id for run in launcher.submitted] == ["r-2"]


def test_an_invalid_job_is_dead_lettered_unchanged(settings: Settings) -> None:
    with Publisher(settings.kafka) as publisher:
        publisher.send_raw(Topic.TRAINING_JOBS, b"\xffnothing", key="r-0", partition_by="support")
    publish(settings, make_job("r-1"))
    with running_launcher(settings, launcher := FakeLauncher()):
        eventually(lambda: committed(settings) == 2)
    assert len(launcher.submitted) == 1
    [dead_letter] = read(settings.kafka, Topic.DEAD_LETTERS)
    headers = dict(dead_letter.headers)
    assert (dead_letter.key, dead_letter.value) == (b"r-0", b"\xffnothing")
    assert headers[dead_letters.TOPIC_HEADER].decode() == Topic.TRAINING_JOBS.named(settings.kafka.topic_prefix)
    assert headers[dead_letters.OFFSET_HEADER] == b"0"
    assert headers[dead_letters.ERROR_HEADER]


def test_the_next_launcher_runs_the_job_of_a_stopped_one(settings: Settings) -> None:
    job = make_job("r-1")
    publish(settings, job)
    with running_launcher(settings, first := FakeLauncher(None)):
        eventually(lambda: len(first.submitted) == 1)
    assert outcome(settings, job, 1)["ending"] == "interrupted"
    with running_launcher(settings, second := FakeLauncher()):
        eventually(lambda: committed(settings) == 1)
    assert [run.attempt for run in second.submitted] == [2]


def test_a_detached_run_continues_without_its_launcher(settings: Settings) -> None:
    publish(settings, make_job("r-1"))
    service = FakeLauncher(None, detached=True)
    with running_launcher(settings, service):
        eventually(lambda: len(service.submitted) == 1)
    assert committed(settings) == 0
    with running_launcher(settings, service):
        service.end(service.submitted[0], RunOutcome(ending=Ending.SUCCEEDED))
        eventually(lambda: committed(settings) == 1)
    assert len(service.submitted) == 1
    assert outcome(settings, make_job("r-1"), 1)["ending"] == "succeeded"


def test_the_log_of_a_subprocess_is_uploaded(settings: Settings) -> None:
    publish(settings, make_job("r-1"))
    store = S3ObjectStore(settings.s3)
    program = "import sys; print('reading', sys.argv[1]); sys.exit(75)"
    local = LocalLauncher(settings, store, command=(sys.executable, "-c", program))
    # The subprocess ends with the thread that starts it: the launcher's.
    with running_launcher(settings, local):
        eventually(lambda: committed(settings) == 1)
    *_, status = reports(settings)
    assert status.state is State.FAILED
    assert status.log_uri
    assert status.log_uri.endswith("attempt-2.log")
    job_uri = store.get(store.key(status.log_uri)).decode().split()[-1]
    assert TrainingJob.model_validate_json(store.get(store.key(job_uri))) == make_job("r-1")


def test_the_next_launcher_reruns_the_job_of_a_killed_one_without_overlap(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run appends its process id to a journal; the first then sleeps until it is killed."""
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    journal = tmp_path / "journal"
    program = f"""
import os, pathlib, time
journal = pathlib.Path({str(journal)!r})
first = not journal.exists()
with journal.open("a") as file:
    file.write(f"{{os.getpid()}}\\n")
time.sleep(600 if first else 0)
"""
    publish(settings, make_job("r-1"))
    command = [sys.executable, "-c", LAUNCHER, program]
    first = subprocess.Popen(command)
    try:
        eventually(journal.exists)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    second = subprocess.Popen(command)
    try:
        eventually(lambda: committed(settings) == 1)
    finally:
        second.terminate()
        second.wait()
    assert len(journal.read_text().splitlines()) == 2
    assert outcome(settings, make_job("r-1"), 2)["ending"] == "succeeded"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_terminates_the_command_and_its_trainer(settings: Settings, number: signal.Signals, code: int) -> None:
    job = make_job(f"r-{number}")
    publish(settings, job)
    command = [sys.executable, "-m", "foldtune.cli", "launcher"]
    child = subprocess.Popen(command, env=os.environ | settings_environment(settings))
    key = f"jobs/{job_segment(job)}/attempt-1.submission.json"
    eventually(lambda: S3ObjectStore(settings.s3).list(key) == [key])
    child.send_signal(number)
    assert child.wait(60) == code


def test_a_stopped_launcher_lets_its_run_save_and_says_who_takes_up_the_job(settings: Settings, tmp_path: Path) -> None:
    publish(settings, make_job("r-1"))
    with launcher_process(settings, tmp_path) as child:
        eventually((tmp_path / "began").exists)
        child.terminate()
        log, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert (tmp_path / "saved").exists()
    assert outcome(settings, make_job("r-1"), 1)["ending"] == "interrupted"
    assert "run interrupted, left to the next launcher" in log
    assert committed(settings) == 0


def test_a_launcher_ends_in_time_while_brokers_and_object_store_hang(
    settings: Settings, local_servers: LocalServers, tmp_path: Path
) -> None:
    publish(settings, make_job("r-1"))
    pids = [pid for pid in (local_servers.kafka.pid, local_servers.s3.pid) if pid]
    assert len(pids) == 2
    with launcher_process(settings, tmp_path) as child:
        eventually((tmp_path / "began").exists)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            child.terminate()
            log, _ = child.communicate(timeout=30)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    assert child.returncode == 0
    assert (tmp_path / "saved").exists()
    assert "run interrupted without a record, left to the next launcher" in log
    assert "r-1" in log
    with running_launcher(settings, following := FakeLauncher()):
        eventually(lambda: committed(settings) == 1)
    assert [run.attempt for run in following.submitted] == [2]


@contextmanager
def launcher_process(settings: Settings, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A launcher whose runs tell in ``folder`` what they do, killed with the context."""
    command = [sys.executable, "-c", LAUNCHER, SLOW_TO_END.replace("FOLDER", str(folder))]
    variables = os.environ | settings_environment(settings)
    child = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
