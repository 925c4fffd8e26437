"""The serverless deployment end to end on this machine: the functions of `infra.aws.handlers` with a real Kafka, a real
S3 server, a stream worker and a trainer. Only Lambda's event sources and AWS Batch are simulated.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode.cfn_yaml import load
from kafka import KafkaConsumer
from kafka.structs import OffsetAndMetadata, TopicPartition

import launchers.batch.launcher as batch_launcher
from foldtune.dead_letters import OFFSET_HEADER
from foldtune.events import (
    ChatLog,
    DocumentUpserted,
    FineTuneCancelled,
    FineTuneStatus,
    ModelReady,
    RetrievedPassage,
    now,
)
from foldtune.kafka import Publisher, client_options
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings, load_settings, settings_environment
from foldtune.topic_admin import create_topics
from foldtune.topic_reader import read
from foldtune.topics import Topic
from infra.aws.handlers import api, batch_state, launch
from infra.local.stack import LocalServers
from tests.batch_service import BatchService
from tests.lambda_payloads import Context, Record, http_payload, kafka_payload
from tests.runbooks import tables
from tests.support import ChildProcess, environment, settings_of
from trainers.model.base_models import packaged_minilm, packaged_minilm_folder

JOB_DEFINITION = load(str(Path(__file__).parents[2] / "infra" / "aws" / "batch.yml"))["Resources"]["JobDefinition"][
    "Properties"
]
# Batch substitutes the parameter.
COMMAND = tuple(JOB_DEFINITION["ContainerProperties"]["Command"])
MODELS = TRAINED, KILLED, CANCELLED = ("runbooks", "killed", "cancelled")
CLAIMS = {"sub": "somebody", "roles": "[viewer requester]"}
POISON = b"\xffnothing"
PATIENCE_SECONDS = 240.0


class Poller:
    """Polls topics like an event source mapping: redelivers from the first failed record of a partition."""

    def __init__(self, settings: Settings, *topics: Topic) -> None:
        names = [topic.named(settings.kafka.topic_prefix) for topic in topics]
        self._client = KafkaConsumer(
            *names,
            **client_options(settings.kafka),
            group_id=f"{settings.kafka.topic_prefix}functions",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )

    def poll(self) -> None:
        """Invoke the function once with the next records, then commit or seek back."""
        polled = self._client.poll(timeout_ms=200, max_records=10)
        records = [
            Record(item.topic, item.partition, item.offset, item.key, item.value)
            for items in polled.values()
            for item in items
        ]
        if not records:
            return
        answer = launch(kafka_payload(records), Context(120))
        failed = [item["itemIdentifier"] for item in answer["batchItemFailures"]]
        for partition in polled:
            name = f"{partition.topic}-{partition.partition}"
            first_failed = min((item["offset"] for item in failed if item["partition"] == name), default=None)
            if first_failed is None:
                position = self._client.position(partition)
                self._client.commit({partition: OffsetAndMetadata(position, "", -1)})
            else:
                self._client.seek(TopicPartition(partition.topic, partition.partition), first_failed)

    def close(self) -> None:
        self._client.close()


@dataclass
class Loop:
    """The simulated services, driven step by step."""

    settings: Settings
    batch: BatchService
    poller: Poller
    delivered: int = 0

    def until(self, condition: Callable[[], bool]) -> None:
        """Drive poller and Batch until a condition holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s; jobs: {self.batch.jobs}"
            self.poller.poll()
            self.batch.step()
            new = self.batch.events[self.delivered :]
            self.delivered += len(new)
            # EventBridge may reorder and duplicate events.
            for event in (*reversed(new), *new):
                batch_state(event, Context(60))

    def request(self, model: str, **knobs: Any) -> None:
        """Request a training over HTTP; the request id is the model's name."""
        body = json.dumps({"request_id": model, "model": model, **knobs})
        answer = api(http_payload("POST /requests", body, CLAIMS), Context(28))
        assert answer["statusCode"] == 202, answer

    def status(self, request_id: str) -> dict[str, Any]:
        """The status of a request, read over HTTP."""
        call = http_payload("GET /requests/{id}", None, CLAIMS, pathParameters={"id": request_id})
        return {"state": "unknown"} | dict(json.loads(api(call, Context(28))["body"]))

    def job(self, request_id: str) -> dict[str, Any]:
        """The only job of a request; its status is "none" before the submission."""
        jobs = [job for job in self.batch.jobs.values() if job["parameters"]["request_id"] == request_id]
        assert len(jobs) < 2
        return jobs[0] if jobs else {"status": "none"}


def publish_history(settings: Settings) -> None:
    """Publish the documents and the agent's logs."""
    examples, documents = (table.to_pylist() for table in tables())
    with Publisher(settings.kafka) as publisher:
        for document in documents:
            upserted = DocumentUpserted(occurred_at=now(), **document)
            publisher.send(Topic.DOCUMENTS, upserted, key=upserted.folder_id)
        for example in examples:
            shown = [*example["negatives"], example["positive"]]
            log = ChatLog(
                log_id=example["log_id"],
                occurred_at=now(),
                agent_id=example["agent_id"],
                question=example["question"],
                folder_id=example["folder_id"],
                retrieved=tuple(
                    RetrievedPassage(document_id=passage["document_id"], folder_id=passage["folder_id"], rank=rank)
                    for rank, passage in enumerate(shown, start=1)
                ),
                cited_document_ids=(example["positive"]["document_id"],),
            )
            publisher.send(Topic.CHAT_LOGS, log, key=log.folder_id)
        publisher.flush()


@pytest.fixture(scope="module")
def loop(local_servers: LocalServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """The services after three requests: one training succeeded, one was killed, one was cancelled."""
    folder: Path = tmp_path_factory.mktemp("serverless")
    variables = environment(
        local_servers,
        folder,
        FOLDTUNE_TRAINER__BASE_MODEL=packaged_minilm().model_dump_json(exclude_none=True),
        FOLDTUNE_TRAINER__MODEL_FOLDERS=json.dumps([str(packaged_minilm_folder())]),
    )
    settings = settings_of(variables)
    create_topics(settings.kafka, tuple(Topic))
    publish_history(settings)
    # The job definition's command starts "python": put this interpreter first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    batch = BatchService(COMMAND, settings_environment(settings) | {"PATH": path}, folder / "trainers.log")
    worker = ChildProcess(["worker"], variables, folder / "worker.log")
    poller = Poller(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(batch_launcher, "batch_client", lambda _: batch)
        load_settings.cache_clear()
        try:
            services = Loop(settings, batch, poller)
            run(services)
            yield services
        finally:
            load_settings.cache_clear()
            poller.close()
            batch.close()
            worker.kill()


def run(loop: Loop) -> None:
    """Request three trainings, kill one, cancel one, publish an invalid job, and redeliver all jobs at the end."""
    for model in MODELS:
        loop.request(model, training={"batch_size": 8, "epochs": 3, "trainable_layers": 2})
    with Publisher(loop.settings.kafka) as publisher:
        publisher.send_raw(Topic.TRAINING_JOBS, POISON, key="r-0")
        publisher.flush()
        loop.until(lambda: loop.job(CANCELLED)["status"] == "RUNNING")
        cancel = FineTuneCancelled(request_id=CANCELLED, model=CANCELLED, requested_at=now(), requested_by="somebody")
        publisher.publish(Topic.FINE_TUNE_REQUESTS, cancel, key=CANCELLED)
        loop.until(lambda: loop.job(KILLED)["status"] == "RUNNING")
        loop.batch.kill(loop.job(KILLED)["jobId"])
        final = {"completed", "failed", "cancelled"}
        loop.until(lambda: all(loop.status(model)["state"] in final for model in MODELS))
        loop.until(lambda: all(loop.job(model)["status"] in {"SUCCEEDED", "FAILED"} for model in MODELS))
        # Kafka may redeliver a job at any time.
        for record in list(read(loop.settings.kafka, Topic.TRAINING_JOBS)):
            publisher.send_raw(Topic.TRAINING_JOBS, record.value, key=record.key)
        publisher.flush()
        for _ in range(len(MODELS) * 3):
            loop.poller.poll()


def test_a_better_model_is_announced(loop: Loop) -> None:
    [record] = read(loop.settings.kafka, Topic.MODEL_READY)
    ready = ModelReady.model_validate_json(record.value)
    assert (ready.request_id, ready.model) == (TRAINED, TRAINED)
    assert ready.metrics_after.ndcg_at_10 > ready.metrics_before.ndcg_at_10
    store = S3ObjectStore(loop.settings.s3)
    assert store.get(f"{store.key(ready.model_uri)}/manifest.json")
    status = loop.status(TRAINED)
    assert (status["state"], status["model_uri"], status["promoted"]) == ("completed", ready.model_uri, True)
    assert "/log-events/" in status["log_url"]
    assert loop.job(TRAINED)["status"] == "SUCCEEDED"


def test_a_killed_training_fails_with_its_reason(loop: Loop) -> None:
    status = loop.status(KILLED)
    assert (status["state"], status["retryable"]) == ("failed", True)
    assert status["reasons"][0] == "the trainer was ended by SIGKILL, possibly out of memory"
    assert "/log-events/" in status["log_url"]


def test_a_cancelled_training_is_terminated(loop: Loop) -> None:
    assert loop.status(CANCELLED)["state"] == "cancelled"
    job = loop.job(CANCELLED)
    assert (job["status"], job["statusReason"]) == ("FAILED", "foldtune: cancelled")


def test_each_request_has_one_job_and_one_final_status(loop: Loop) -> None:
    assert len(loop.batch.jobs) == len(MODELS)
    ends: dict[str, list[str]] = {"of the model": [], "of the id alone, for earlier SDKs": []}
    for record in read(loop.settings.kafka, Topic.FINE_TUNE_STATUS):
        status = FineTuneStatus.model_validate_json(record.value)
        if status.state.terminal:
            ends["of the model" if b"/" in record.key else "of the id alone, for earlier SDKs"].append(
                status.request_id
            )
    assert {key: sorted(ids) for key, ids in ends.items()} == dict.fromkeys(ends, sorted(MODELS))


def test_an_invalid_job_is_dead_lettered_once(loop: Loop) -> None:
    [first, second] = read(loop.settings.kafka, Topic.DEAD_LETTERS)
    assert (first.key, first.value) == (second.key, second.value) == (b"r-0", POISON)
    # Two records: ``run`` publishes all records of the topic a second time.
    assert dict(first.headers)[OFFSET_HEADER] != dict(second.headers)[OFFSET_HEADER]


def test_the_functions_import_only_packages_of_their_bundle() -> None:
    """The bundle excludes the packages of the extras; torch alone is many times its size."""
    program = (
        "import sys, json, infra.aws.handlers; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(json.loads(answer.stdout))
    assert {"boto3", "kafka", "pydantic"} <= imported
    heavy = {"torch", "faust", "transformers", "numpy", "pyarrow", "psutil", "rocksdict", "scipy", "jinja2", "aiohttp"}
    assert not imported & heavy
