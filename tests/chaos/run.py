"""One chaotic run: real servers, three workers, traffic and faults; afterwards, what the system made of it."""

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
from tests.chaos.reference import Expected, History, Row
from tests.chaos.traffic import BOUNDED_FOLDERS, FOLDERS, MAX_EXAMPLES, Traffic, Trainer
from tests.support import environment, settings_of

WORKERS = 3
# Faust keeps its checkpoint beside the values.
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
    """What is done to the system; ``without`` names a correction that the workers do not have."""

    seed: int
    seconds: float
    fault_every: float = 2.5
    kinds: tuple[str, ...] | None = None
    without: str | None = None
    # How long the system may take, once the faults are over, to come to rest.
    patience: float = 240.0


@dataclass
class Report:
    """What happened, and the counters that must be zero."""

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
    def broken(self) -> dict[str, int]:
        """The counters that should be zero and are not."""
        counters = {name: getattr(self, name) for name in _ZERO}
        return {name: count for name, count in counters.items() if count}

    def as_line(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self) | {"injected": sum(self.faults.values())})


def run(plan: Plan, folder: Path) -> Report:
    """Do it, and compare. Logs and disks stay in ``folder``."""
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
            system.settle(report, folder / "differences.json")
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
    """What is left running once the faults are over."""

    settings: Settings
    traffic: Traffic
    trainer: Trainer
    workers: list[Worker]
    patience: float

    def settle(self, report: Report, differences: Path) -> None:
        """Wait until the system has come to rest, and hold what it has against what it should."""
        self.traffic.patiently().close()
        self._await_ends()
        history = History(self.settings)
        expected, found = history.expected(), self._folders()
        ends = self._ends()
        odd = {request_id: sorted(ends[request_id]) for request_id in self.traffic.asked if len(ends[request_id]) != 1}
        different: dict[str, Any] = {
            name: (expected[name], found[name]) for name in FOLDERS if expected[name] != found[name]
        }
        differences.write_text(json.dumps({"folders": different, "requests": odd}, default=asdict, indent=1))
        for name in FOLDERS:
            wanted, got = [row[0] for row in expected[name].rows], [row[0] for row in found[name].rows]
            report.lost += len(set(wanted) - set(got))
            report.duplicated += len(got) - len(set(got))
        report.diverged_folders = len(different)
        report.logs_published = len(history.logs)
        report.lost += len(self.traffic.acknowledged - history.logs)
        report.requests = len(self.traffic.asked)
        report.requests_without_one_end = len(odd)
        letters = {record.value for record in read(self.settings.kafka, Topic.DEAD_LETTERS)}
        report.dead_letters_missing = len(self.traffic.poison - letters)

    def _await_ends(self) -> None:
        deadline = time.monotonic() + self.patience
        while self.traffic.asked - self._ends().keys() and time.monotonic() < deadline:
            self._rest()

    def _ends(self) -> dict[str, set[str]]:
        """The terminal states of each request. One that is said again after a crash is still one."""
        ends: dict[str, set[str]] = defaultdict(set)
        for record in read(self.settings.kafka, Topic.FINE_TUNE_STATUS):
            status = FineTuneStatus.model_validate_json(record.value)
            if status.state.terminal:
                ends[status.request_id].add(status.state.value)
        return ends

    def _rest(self) -> None:
        for worker in self.workers:
            worker.keep_alive()
        time.sleep(0.5)

    def _folders(self) -> dict[str, Expected]:
        """What the product itself makes of its state: the rows of a last snapshot."""
        job = self._last_job()
        store = S3ObjectStore(self.settings.s3)
        manifest = SnapshotManifest.model_validate_json(store.get(store.key(job.snapshot_uri)))
        found: dict[str, Expected] = defaultdict(Expected)
        for part in manifest.parts:
            for row in _rows(store, part.examples):
                positive = row["positive"]["document_id"] if row["positive"] else None
                line: Row = (row["log_id"], row["question"], row["label"], positive)
                found[row["folder_id"]].rows.append(line)
            for row in _rows(store, part.documents):
                found[row["folder_id"]].documents[row["document_id"]] = row["text"]
        return found

    def _last_job(self) -> TrainingJob:
        with Publisher(self.settings.kafka) as publisher:
            for attempt in range(5):
                request = FineTuneRequested(request_id=f"last-{attempt}", model=f"last-{attempt}", requested_at=now())
                publisher.publish(Topic.FINE_TUNE_REQUESTS, request, key=request.model)
                deadline = time.monotonic() + max(30, self.patience / 4)
                while time.monotonic() < deadline:
                    self._rest()
                    if job := self.trainer.jobs.get(request.request_id):
                        return job
        raise TimeoutError("no last snapshot")


def _rows(store: S3ObjectStore, file: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(store.get(store.key(file.uri)))).to_pylist()
    return rows


def _stores_unlike_changelog(settings: Settings, workers: list[Worker]) -> int:
    """Partitions of which no worker's disk holds exactly what the changelog alone comes to."""
    unlike = 0
    (topic, *_) = changelogs(settings)
    with consumer(settings.kafka) as client:
        for partition in range(settings.kafka.partitions):
            content = _compacted(client, TopicPartition(topic, partition))
            stores = [path for worker in workers for path in worker.data_dir.rglob(f"training-sets-{partition}.db")]
            unlike += all(_content(path) != content for path in stores)
    return unlike


def _compacted(client: Any, place: TopicPartition) -> dict[bytes, bytes]:
    client.assign([place])
    client.seek_to_beginning(place)
    end = client.end_offsets([place])[place]
    found: dict[bytes, bytes] = {}
    while client.position(place) < end:
        for records in client.poll(timeout_ms=500, max_records=5000).values():
            for record in records:
                if record.value is None:
                    found.pop(record.key, None)
                else:
                    found[record.key] = record.value
    return found


def _content(path: Path) -> dict[bytes, bytes]:
    copy = path.with_suffix(".copy")
    shutil.copytree(path, copy)
    database = Rdict(str(copy), Options(raw_mode=True), access_type=AccessType.read_only())
    try:
        items: Any = database.items()
        return {key: value for key, value in items if not key.startswith(_CHECKPOINT)}
    finally:
        database.close()
        shutil.rmtree(copy)
