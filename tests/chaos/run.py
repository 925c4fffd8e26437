"""One run: real servers, three workers, traffic and faults; afterwards the comparison with the reference model."""

import io
import json
import shutil
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from kafka import TopicPartition
from rocksdict import AccessType, Options, Rdict

from foldtune.events import FineTuneRequested, FineTuneStatus, SnapshotManifest, TrainingJob, now
from foldtune.kafka import Publisher, consumer, create_topics
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import Topic
from infra.local.options import LocalOptions
from infra.local.stack import LocalServers
from streams.worker.app import changelogs
from tests.chaos.faults import SESSION_SECONDS, Faults, Worker
from tests.chaos.reference import FolderContent, History, Row
from tests.chaos.traffic import BOUNDED_FOLDERS, FOLDERS, MAX_EXAMPLES, Traffic, Trainer
from tests.support import environment, settings_of

WORKERS = 3
# Faust stores its checkpoint in the same database.
_CHECKPOINT = b"__faust"


_ZERO = (
    "lost",
    "duplicated",
    "diverged_folders",
    "requests_without_one_end",
    "stores_unlike_changelog",
    "dead_letters_missing",
)


@dataclass(frozen=True)
class Plan:
    """The parameters of a run; ``without`` names a correction to disable in the workers."""

    seed: int
    seconds: float
    fault_every: float = 2.5
    kinds: tuple[str, ...] | None = None
    without: str | None = None
    # Seconds after the last fault until every request must have a final status.
    patience: float = 240.0


@dataclass
class Report:
    """Counts of the run, and the counters that must be 0."""

    seed: int
    seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    logs_published: int = 0
    requests: int = 0
    worker_exits: int = 0
    lost: int = 0
    duplicated: int = 0
    diverged_folders: int = 0
    requests_without_one_end: int = 0
    stores_unlike_changelog: int = 0
    dead_letters_missing: int = 0

    @property
    def violations(self) -> dict[str, int]:
        """The counters that must be 0 and are not."""
        counters = {name: getattr(self, name) for name in _ZERO}
        return {name: count for name, count in counters.items() if count}

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self) | {"injected": sum(self.faults.values())})


def run(plan: Plan, folder: Path) -> Report:
    """Inject the faults and compare. The log files and data folders stay in ``folder``."""
    report = Report(plan.seed, plan.seconds)
    options = LocalOptions(data_dir=folder / "servers", kafka_port=None, s3_port=None, keep_data=False)
    with LocalServers(options) as servers:
        variables = environment(
            servers,
            folder,
            FOLDTUNE_SETS__FOLDERS=json.dumps({name: {"max_examples": MAX_EXAMPLES} for name in BOUNDED_FOLDERS}),
            FOLDTUNE_WORKER__SESSION_TIMEOUT=f"PT{SESSION_SECONDS}S",
            FOLDTUNE_WORKER__BLOCK_RECORDS="50",
            FOLDTUNE_WORKER__SNAPSHOT_TIMEOUT="PT60S",
            FOLDTUNE_WORKER__CATCH_UP_TIMEOUT="PT15S",
            CHAOS_WITHOUT=plan.without or "",
        )
        settings = settings_of(variables)
        create_topics(settings.kafka, tuple(Topic), changelogs(settings))
        traffic, trainer = Traffic(settings, plan.seed), Trainer(settings)
        workers = [Worker(number, folder, variables) for number in range(WORKERS)]
        faults = Faults(servers, workers, traffic, seed=plan.seed, every=plan.fault_every, kinds=plan.kinds)
        try:
            for thread in (traffic, trainer, faults):
                thread.start()
            time.sleep(plan.seconds)
            for thread in (faults, traffic):
                thread.done.set()
                thread.join()
            system = System(settings, traffic, trainer, workers, plan.patience)
            system.compare(report, folder / "differences.json")
        finally:
            trainer.done.set()
            for worker in workers:
                worker.stop()
        report.faults = dict(sorted(faults.counts.items()))
        report.worker_exits = sum(worker.exits for worker in workers)
        report.stores_unlike_changelog = _stores_unlike_changelog(settings, workers)
    return report


@dataclass(frozen=True)
class System:
    """The running system after the faults."""

    settings: Settings
    traffic: Traffic
    trainer: Trainer
    workers: list[Worker]
    patience: float

    def compare(self, report: Report, differences: Path) -> None:
        """Wait for the final statuses, then compare the system with the reference model and fill in the report."""
        self.traffic.connect().close()
        self._await_final_states()
        history = History(self.settings)
        expected, found = history.expected(), self._exported_folders()
        states = self._final_states()
        unresolved = {
            request_id: sorted(states[request_id])
            for request_id in self.traffic.requested
            if len(states[request_id]) != 1
        }
        different: dict[str, Any] = {
            name: (expected[name], found[name]) for name in FOLDERS if expected[name] != found[name]
        }
        differences.write_text(json.dumps({"folders": different, "requests": unresolved}, default=asdict, indent=1))
        for name in FOLDERS:
            wanted, exported = ([row[0] for row in contents[name].rows] for contents in (expected, found))
            report.lost += len(set(wanted) - set(exported))
            report.duplicated += len(exported) - len(set(exported))
        report.diverged_folders = len(different)
        report.logs_published = len(history.logs)
        report.lost += len(self.traffic.acknowledged - history.logs)
        report.requests = len(self.traffic.requested)
        report.requests_without_one_end = len(unresolved)
        letters = {record.value for record in read(self.settings.kafka, Topic.DEAD_LETTERS)}
        report.dead_letters_missing = len(self.traffic.poison - letters)

    def _await_final_states(self) -> None:
        deadline = time.monotonic() + self.patience
        while self.traffic.requested - self._final_states().keys() and time.monotonic() < deadline:
            self._keep_workers_alive()

    def _final_states(self) -> dict[str, set[str]]:
        """The final states of each request; the same state published twice after a crash counts once."""
        states: dict[str, set[str]] = defaultdict(set)
        for record in read(self.settings.kafka, Topic.FINE_TUNE_STATUS):
            status = FineTuneStatus.model_validate_json(record.value)
            if status.state.terminal:
                states[status.request_id].add(status.state.value)
        return states

    def _keep_workers_alive(self) -> None:
        for worker in self.workers:
            worker.keep_alive()
        time.sleep(0.5)

    def _exported_folders(self) -> dict[str, FolderContent]:
        """The content of every folder in a last snapshot of the system."""
        job = self._last_job()
        store = S3ObjectStore(self.settings.s3)
        manifest = SnapshotManifest.model_validate_json(store.get(store.key(job.snapshot_uri)))
        contents: dict[str, FolderContent] = defaultdict(FolderContent)
        for part in manifest.parts:
            for row in _rows(store, part.examples):
                positive = row["positive"]["document_id"] if row["positive"] else None
                columns: Row = (row["log_id"], row["question"], row["label"], positive)
                contents[row["folder_id"]].rows.append(columns)
            for row in _rows(store, part.documents):
                contents[row["folder_id"]].documents[row["document_id"]] = row["text"]
        return contents

    def _last_job(self) -> TrainingJob:
        with Publisher(self.settings.kafka) as publisher:
            for attempt in range(5):
                request = FineTuneRequested(request_id=f"last-{attempt}", model=f"last-{attempt}", requested_at=now())
                publisher.publish(Topic.FINE_TUNE_REQUESTS, request, key=request.model)
                deadline = time.monotonic() + max(30, self.patience / 4)
                while time.monotonic() < deadline:
                    self._keep_workers_alive()
                    if job := self.trainer.jobs.get(request.request_id):
                        return job
        raise TimeoutError("no last snapshot")


def _rows(store: S3ObjectStore, file: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(store.get(store.key(file.uri)))).to_pylist()
    return rows


def _stores_unlike_changelog(settings: Settings, workers: list[Worker]) -> int:
    """The number of partitions for which no worker's RocksDB equals the state replayed from the changelog."""
    differing = 0
    (topic, *_) = changelogs(settings)
    with consumer(settings.kafka) as client:
        for partition in range(settings.kafka.partitions):
            content = _replay(client, TopicPartition(topic, partition))
            stores = [path for worker in workers for path in worker.data_dir.rglob(f"training-sets-{partition}.db")]
            differing += all(_rocksdb_content(path) != content for path in stores)
    return differing


def _replay(client: Any, partition: TopicPartition) -> dict[bytes, bytes]:
    client.assign([partition])
    client.seek_to_beginning(partition)
    end = client.end_offsets([partition])[partition]
    state: dict[bytes, bytes] = {}
    while client.position(partition) < end:
        for records in client.poll(timeout_ms=500, max_records=5000).values():
            for record in records:
                if record.value is None:
                    state.pop(record.key, None)
                else:
                    state[record.key] = record.value
    return state


def _rocksdb_content(path: Path) -> dict[bytes, bytes]:
    copy = path.with_suffix(".copy")
    shutil.copytree(path, copy)
    database = Rdict(str(copy), Options(raw_mode=True), access_type=AccessType.read_only())
    try:
        items: Any = database.items()
        return {key: value for key, value in items if not key.startswith(_CHECKPOINT)}
    finally:
        database.close()
        shutil.rmtree(copy)
