"""Helpers for tests against real servers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from foldtune.events import (
    ChatLog,
    DocumentUpserted,
    Event,
    FineTuneRequested,
    GateVerdict,
    ModelReady,
    ModelReference,
    RetrievalMetrics,
    RetrievedPassage,
    now,
)
from foldtune.kafka import client_options
from foldtune.settings import Settings
from foldtune.topics import Topic
from infra.local.stack import LocalServers


def environment(servers: LocalServers, folder: Path, **more: str) -> dict[str, str]:
    """Environment variables of an isolated system on the shared servers."""
    name = f"t{uuid4().hex[:8]}"
    return servers.environment | {
        "FOLDTUNE_KAFKA__TOPIC_PREFIX": f"{name}-",
        "FOLDTUNE_WORKER__APP_ID": name,
        "FOLDTUNE_S3__PREFIX": f"{name}/",
        "FOLDTUNE_WORKER__DATA_DIR": str(folder / "worker"),
        "FOLDTUNE_WORKER__SESSION_TIMEOUT": "PT6S",
        "FOLDTUNE_TRAINER__WORK_DIR": str(folder / "jobs"),
        **more,
    }


def settings_of(variables: dict[str, str]) -> Settings:
    """The settings of a process with these environment variables."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("FOLDTUNE_")}
    for name in kept:
        del os.environ[name]
    os.environ.update(variables)
    try:
        return Settings()
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(kept)


def setting_names(model: type[BaseModel] = Settings, prefix: str = "FOLDTUNE_") -> set[str]:
    """The environment variables that settings are read from."""
    names = set()
    for name, field in model.model_fields.items():
        names.add(f"{prefix}{name.upper()}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= setting_names(field.annotation, f"{prefix}{name.upper()}__")
    return names


class ChildProcess:
    """A foldtune command in a child process; its output goes to a file."""

    def __init__(self, arguments: list[str], variables: dict[str, str], log: Path, module: str = "foldtune") -> None:
        self.log = log
        command = [sys.executable, "-m", module, *arguments]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT
            )

    def send(self, signal_number: int) -> None:
        self._process.send_signal(signal_number)

    def stop(self, seconds: float = 30) -> int:
        """Send SIGTERM and wait; the exit status."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        """Wait without another signal, which ends an interpreter that is exiting at once; the exit status."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


class Reader:
    """Reads topics from the beginning into ``records``."""

    def __init__(self, settings: Settings, *topics: Topic) -> None:
        from kafka import KafkaConsumer

        names = [topic.named(settings.kafka.topic_prefix) for topic in topics]
        self._client = KafkaConsumer(
            *names, **client_options(settings.kafka), auto_offset_reset="earliest", enable_auto_commit=False
        )
        self.records: list[Any] = []

    def until(self, condition: Callable[[list[Any]], bool], seconds: float = 120) -> list[Any]:
        """Read until ``condition`` holds for the records; all records."""
        deadline = time.monotonic() + seconds
        while not condition(self.records):
            if time.monotonic() > deadline:
                seen = "\n".join(f"{record.topic}: {(record.value or b'')[:400]!r}" for record in self.records[-20:])
                msg = f"not within {seconds} s; the last of {len(self.records)} records:\n{seen}"
                raise AssertionError(msg)
            for records in self._client.poll(timeout_ms=200).values():
                self.records += records
        return self.records

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def folder_history(folder_id: str, count: int) -> Iterator[tuple[Topic, Event]]:
    """``count`` documents and one citing log for each."""
    for number in range(count):
        yield (
            Topic.DOCUMENTS,
            DocumentUpserted(
                document_id=f"d{number}", folder_id=folder_id, occurred_at=now(), text=f"Text {number} of {folder_id}."
            ),
        )
        retrieved = tuple(
            RetrievedPassage(document_id=f"d{(number + rank) % count}", folder_id=folder_id, rank=rank + 1)
            for rank in range(3)
        )
        yield (
            Topic.CHAT_LOGS,
            ChatLog(
                log_id=f"{folder_id}-{number}",
                occurred_at=now(),
                agent_id="agent",
                question=f"What is number {number}?",
                folder_id=folder_id,
                retrieved=retrieved,
                cited_document_ids=(f"d{number}",),
            ),
        )


def fine_tune_request(name: str, model: str = "model", **changes: Any) -> FineTuneRequested:
    """A request with defaults."""
    return FineTuneRequested(request_id=name, model=model, requested_at=now(), requested_by="test", **changes)


def model_ready(**fields: Any) -> ModelReady:
    """The event of a promoted model, with defaults for what does not matter."""
    metrics = RetrievalMetrics(
        recall_at_1=0.1, recall_at_5=0.2, recall_at_10=0.3, mrr_at_10=0.2, ndcg_at_10=0.2, questions=10, documents=20
    )
    others: dict[str, Any] = {
        "request_id": "r",
        "model": "m",
        "version": "000001",
        "model_uri": "s3://memory/models/m/000001",
        "manifest_sha256": "0" * 64,
        "base_model": ModelReference(uri="hf://org/model"),
        "embedding_space_id": "space",
        "dimension": 384,
        "normalized": True,
        "requires_reindex": True,
        "metrics_before": metrics,
        "metrics_after": metrics,
        "gate": GateVerdict(promote=True, reasons=(), ndcg_gain=0.1, ndcg_gain_interval=(0.05, 0.15)),
        "snapshot_uri": "s3://memory/snapshots/r/manifest.json",
        "snapshot_sha256": "0" * 64,
        "snapshot_offsets": (),
        "training_seconds": 1.0,
        "published_at": datetime(2026, 3, 1, tzinfo=UTC),
    }
    return ModelReady(**others | fields)
