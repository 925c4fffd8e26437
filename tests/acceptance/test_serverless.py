"""The whole loop as it is in the cloud, on this machine: the functions of `infra.aws.handlers` between a real Kafka, a
real S3 server, a stream worker and a trainer. Only Lambda's pollers and AWS Batch are played, by the test.
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
from foldtune.kafka import Publisher, client_options, create_topics
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings, load_settings, settings_environment
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
# Batch fills in the parameter.
COMMAND = tuple(JOB_DEFINITION["ContainerProperties"]["Command"])
MODELS = TRAINED, KILLED, REGRETTED = ("runbooks", "killed", "regretted")
CLAIMS = {"sub": "somebody"}
POISON = b"\xffnothing"
PATIENCE_SECONDS = 240.0


class Poller:
    """Reads topics for a function, as an event source mapping does: what failed is delivered again, with all behind."""

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
        """Hand over what is there, in one call."""
        found = self._client.poll(timeout_ms=200, max_records=10)
        records = [
            Record(one.topic, one.partition, one.offset, one.key, one.value) for many in found.values() for one in many
        ]
        if not records:
            return
        answer = launch(kafka_payload(records), Context(120))
        failed = [item["itemIdentifier"] for item in answer["batchItemFailures"]]
        for partition in found:
            name = f"{partition.topic}-{partition.partition}"
            again = min((item["offset"] for item in failed if item["partition"] == name), default=None)
            if again is None:
                position = self._client.position(partition)
                self._client.commit({partition: OffsetAndMetadata(position, "", -1)})
            else:
                self._client.seek(TopicPartition(partition.topic, partition.partition), again)

    def close(self) -> None:
        self._client.close()


@dataclass
class Loop:
    """All that goes on."""

    settings: Settings
    batch: BatchService
    poller: Poller
    delivered: int = 0

    def until(self, condition: Callable[[], bool]) -> None:
        """Let things happen until a condition holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"it did not come to be; the jobs: {self.batch.jobs}"
            self.poller.poll()
            self.batch.step()
            new = self.batch.events[self.delivered :]
            self.delivered += len(new)
            # Twice, and first in the wrong order.
            for event in (*reversed(new), *new):
                batch_state(event, Context(60))

    def ask(self, model: str, **knobs: Any) -> None:
        """Ask for a model over HTTP; its request has its name."""
        body = json.dumps({"request_id": model, "model": model, **knobs})
        answer = api(http_payload("POST /requests", body, CLAIMS), Context(28))
        assert answer["statusCode"] == 202, answer

    def status(self, request_id: str) -> dict[str, Any]:
        """How a request stands, as told over HTTP."""
        call = http_payload("GET /requests/{id}", None, CLAIMS, pathParameters={"id": request_id})
        return {"state": "unknown"} | dict(json.loads(api(call, Context(28))["body"]))

    def job(self, request_id: str) -> dict[str, Any]:
        """The one job of a request, empty while there is none."""
        found = [job for job in self.batch.jobs.values() if job["parameters"]["request_id"] == request_id]
        assert len(found) < 2
        return found[0] if found else {"status": "none"}


def publish_history(settings: Settings) -> None:
    """The documents, and the agent's logs."""
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
                    RetrievedPassage(document_id=one["document_id"], folder_id=one["folder_id"], rank=rank)
                    for rank, one in enumerate(shown, start=1)
                ),
                cited_document_ids=(example["positive"]["document_id"],),
            )
            publisher.send(Topic.CHAT_LOGS, log, key=log.folder_id)
        publisher.flush()


@pytest.fixture(scope="module")
def loop(local_servers: LocalServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """Three models were asked for: one training succeeds, one is killed, one is cancelled."""
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
    # "python" is this one.
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
            found = Loop(settings, batch, poller)
            run(found)
            yield found
        finally:
            load_settings.cache_clear()
            poller.close()
            batch.close()
            worker.kill()


def run(loop: Loop) -> None:
    """The story."""
    for model in MODELS:
        loop.ask(model, training={"batch_size": 8, "epochs": 3, "trainable_layers": 2})
    with Publisher(loop.settings.kafka) as publisher:
        publisher.send_raw(Topic.TRAINING_JOBS, POISON, key="r-0")
        publisher.flush()
        loop.until(lambda: loop.job(REGRETTED)["status"] == "RUNNING")
        cancel = FineTuneCancelled(request_id=REGRETTED, model=REGRETTED, requested_at=now(), requested_by="somebody")
        publisher.publish(Topic.FINE_TUNE_REQUESTS, cancel, key=REGRETTED)
        loop.until(lambda: loop.job(KILLED)["status"] == "RUNNING")
        loop.batch.kill(loop.job(KILLED)["jobId"])
        ended = {"completed", "failed", "cancelled"}
        loop.until(lambda: all(loop.status(model)["state"] in ended for model in MODELS))
        loop.until(lambda: all(loop.job(model)["status"] in {"SUCCEEDED", "FAILED"} for model in MODELS))
        # Kafka may deliver a job again at any time.
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
    assert status["reasons"][0] == "the trainer was ended by SIGKILL, perhaps for want of memory"
    assert "/log-events/" in status["log_url"]


def test_a_cancelled_training_is_terminated(loop: Loop) -> None:
    assert loop.status(REGRETTED)["state"] == "cancelled"
    job = loop.job(REGRETTED)
    assert (job["status"], job["statusReason"]) == ("FAILED", "foldtune: cancelled")


def test_each_request_has_one_job_and_one_final_status(loop: Loop) -> None:
    assert len(loop.batch.jobs) == len(MODELS)
    statuses = [
        FineTuneStatus.model_validate_json(one.value) for one in read(loop.settings.kafka, Topic.FINE_TUNE_STATUS)
    ]
    assert sorted(status.request_id for status in statuses if status.state.terminal) == sorted(MODELS)


def test_an_invalid_job_is_dead_lettered_once(loop: Loop) -> None:
    [letter, again] = read(loop.settings.kafka, Topic.DEAD_LETTERS)
    assert (letter.key, letter.value) == (again.key, again.value) == (b"r-0", POISON)
    # It was on the topic twice: the story publishes again what lies there.
    assert dict(letter.headers)[OFFSET_HEADER] != dict(again.headers)[OFFSET_HEADER]


def test_the_functions_import_only_packages_of_their_bundle() -> None:
    """The packages of the extras stay out of the bundle; torch alone would be many times its size."""
    program = (
        "import sys, json, infra.aws.handlers; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(json.loads(answer.stdout))
    assert {"boto3", "kafka", "pydantic"} <= imported
    heavy = {"torch", "faust", "transformers", "numpy", "pyarrow", "psutil", "rocksdict", "scipy", "jinja2", "aiohttp"}
    assert not imported & heavy
