"""After the loss of every topic, a snapshot on the object store makes the training sets again."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from foldtune.events import TrainingJob
from foldtune.kafka import Publisher
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from infra.local.stack import LocalServers
from tests.integration.conftest import StartWorker
from tests.support import ChildProcess, Reader, environment, fine_tune_request, folder_history, settings_of
from trainers.data.snapshot import read_snapshot


def job_of(settings: Settings, name: str) -> TrainingJob:
    """The job that a worker makes of a request."""
    with Publisher(settings.kafka) as publisher:
        publisher.publish(Topic.FINE_TUNE_REQUESTS, fine_tune_request(name), key="model")
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        (record,) = reader.until(lambda records: len(records) == 1)
    return TrainingJob.model_validate_json(record.value)


def content(settings: Settings, job: TrainingJob) -> tuple[list[Any], list[Any]]:
    snapshot = read_snapshot(S3ObjectStore(settings.s3), job.snapshot_uri, job.snapshot_sha256)
    examples = sorted(snapshot.examples.to_pylist(), key=lambda row: row["log_id"])
    return examples, sorted(snapshot.documents.to_pylist(), key=lambda row: (row["folder_id"], row["document_id"]))


def foldtune(variables: dict[str, str], *arguments: str, given: bytes = b"") -> bytes:
    command = [sys.executable, "-m", "foldtune", *arguments]
    return subprocess.run(command, env=os.environ | variables, input=given, stdout=subprocess.PIPE, check=True).stdout


def test_a_restored_training_set_gives_the_same_snapshot(
    local_servers: LocalServers,
    variables: dict[str, str],
    settings: Settings,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    with Publisher(settings.kafka) as publisher:
        for folder in ("rates", "../plans"):
            for topic, event in folder_history(folder, 25):
                publisher.send(topic, event, key=folder)
        publisher.flush()
    start_worker()
    job = job_of(settings, "before")
    store = S3ObjectStore(settings.s3)
    # As the launcher writes it.
    store.put("jobs/restored/job.json", job.encode())

    # Another system on the same bucket, whose topics are empty.
    new_variables = environment(local_servers, tmp_path / "new")
    new = settings_of(new_variables)
    create_topics(new.kafka, tuple(Topic))
    for kind in ("documents", "logs"):
        lines = foldtune(new_variables, "restore", kind, store.uri("jobs/restored/job.json"))
        assert lines.count(b"\n") == 50
        foldtune(new_variables, "import", kind, "-", given=lines)
    worker = ChildProcess(["worker"], new_variables, tmp_path / "new.log")
    try:
        assert content(new, job_of(new, "after")) == content(settings, job)
    finally:
        worker.kill()
