"""One run: real servers, three workers, traffic and faults; afterwards the comparison with the reference model."""

import hashlib
import io
import json
import shutil
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from kafka import TopicPartition
from rocksdict import AccessType, Options, Rdict

from foldtune.events import (
    FineTuneCancelled,
    FineTuneRequested,
    FineTuneStatus,
    SnapshotManifest,
    State,
    TrainingJob,
    now,
)
from foldtune.kafka import Publisher, consumer
from foldtune.object_store import S3ObjectStore
from foldtune.settings import S3Settings, Settings
from foldtune.topic_admin import create_topics
from foldtune.topic_reader import read
from foldtune.topics import Topic
from infra.local.options import LocalOptions
from infra.local.stack import LocalServers
from streams.worker.app import changelogs
from tests.chaos.faults import SESSION_SECONDS, Faults, Injector, Supervisor, Worker, injectors, small_disks
from tests.chaos.losses import Account, Losses, replay
from tests.chaos.reference import LEFT_OUT, FolderContent, History
from tests.chaos.traffic import (
    BOUNDED_FOLDERS,
    FOLDERS,
    MAX_EXAMPLES,
    UNKNOWN_FOLDER,
    RequestKey,
    Traffic,
    Trainer,
)
from tests.s3_proxy import S3Proxy
from tests.support import environment, settings_of

WORKERS = 3
# A broker that is killed comes back without what was deleted a second before.
_KAFKA_SETTINGS = {"log.flush.start.offset.checkpoint.interval.ms": "1000", "log.initial.task.delay.ms": "1000"}
# Faust stores its checkpoint in the same database.
_CHECKPOINT = b"__faust"
_TABLES = ("training-sets", "requests")


@dataclass(frozen=True)
class Plan:
    """The parameters of a run; ``without`` names corrections to disable in the workers."""

    seed: int
    seconds: float
    fault_every: float = 2.0
    kinds: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    # Seconds after the last fault until every request must have a final status.
    patience: float = 240.0


@dataclass
class Counters:
    """What must be 0."""

    # Logs that the broker had taken, or that the snapshot should have, and rows of one log more than once.
    lost: int = 0
    duplicated: int = 0
    # Folders of which any field of any row or document differs.
    diverged_folders: int = 0
    # Of what topics lost before it was read or after it: the records by which a snapshot's account is wrong.
    losses_miscounted: int = 0
    # No end, or two; an end that neither the request nor its trainer gave cause for.
    requests_without_one_end: int = 0
    requests_with_wrong_end: int = 0
    # Manifests that are not those that a job names.
    snapshots_altered: int = 0
    # Partitions of both tables for which no worker's RocksDB equals the state replayed from the changelog.
    stores_unlike_changelog: int = 0
    dead_letters_missing: int = 0
    # Valid records that were rejected.
    dead_letters_unfounded: int = 0


@dataclass
class Report:
    """Counts of the run, and the counters that must be 0."""

    seed: int
    seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    logs_published: int = 0
    requests: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    # What topics lost, by cause.
    losses: dict[str, int] = field(default_factory=dict)
    worker_exits: int = 0
    counters: Counters = field(default_factory=Counters)

    @property
    def violations(self) -> dict[str, int]:
        """The counters that must be 0 and are not."""
        return {name: count for name, count in asdict(self.counters).items() if count}

    def to_json(self) -> str:
        """One JSON object."""
        content = asdict(self)
        return json.dumps(content | content.pop("counters") | {"injected": sum(self.faults.values())})


def run(plan: Plan, folder: Path) -> Report:
    """Inject the faults and compare. The log files and data folders stay in ``folder``."""
    report = Report(plan.seed, plan.seconds)
    options = LocalOptions(
        data_dir=folder / "servers", kafka_port=None, s3_port=None, keep_data=False, kafka_settings=_KAFKA_SETTINGS
    )
    disks = [folder / f"worker-{number}" for number in range(WORKERS)]
    with (
        LocalServers(options) as servers,
        S3Proxy(S3Settings(endpoint_url=servers.s3_endpoint)) as s3,
        small_disks(disks) as may_fill,
    ):
        variables = environment(
            servers,
            folder,
            FOLDTUNE_SETS__FOLDERS=json.dumps({name: {"max_examples": MAX_EXAMPLES} for name in BOUNDED_FOLDERS}),
            FOLDTUNE_WORKER__SESSION_TIMEOUT=f"PT{SESSION_SECONDS}S",
            FOLDTUNE_WORKER__BLOCK_RECORDS="50",
            FOLDTUNE_WORKER__SNAPSHOT_TIMEOUT="PT60S",
            FOLDTUNE_WORKER__CATCH_UP_TIMEOUT="PT15S",
        )
        settings = settings_of(variables)
        create_topics(settings.kafka, tuple(Topic), changelogs(settings))
        traffic, trainer = Traffic(settings, plan.seed), Trainer(settings)
        of_worker = variables | {"FOLDTUNE_S3__ENDPOINT_URL": s3.endpoint_url, "CHAOS_WITHOUT": ",".join(plan.without)}
        workers = [Worker(number, disk, of_worker, servers.kafka.port) for number, disk in enumerate(disks)]
        supervisor = Supervisor(workers)
        losses = Losses(settings, options.data_dir)
        faults = Faults(servers, s3, workers, traffic, losses)
        injecting = injectors(
            faults,
            seed=plan.seed,
            every=plan.fault_every,
            seconds=plan.seconds,
            kinds=plan.kinds,
            skipped=() if may_fill else ("disk full",),
        )
        try:
            threads: list[Traffic | Trainer | Supervisor | Injector] = [traffic, trainer, supervisor, *injecting]
            for started in threads:
                started.start()
            time.sleep(plan.seconds)
            ending: list[Traffic | Injector] = [*injecting, traffic]
            for ended in ending:
                ended.done.set()
                ended.join()
            if errors := [injector.error for injector in injecting if injector.error]:
                raise ExceptionGroup("faults", errors)
            trainers = [trainer, *faults.second_trainers]
            System(settings, traffic, losses, trainers, plan.patience).compare(report, folder / "differences.json")
        finally:
            supervisor.done.set()
            supervisor.join()
            for other in (trainer, *faults.second_trainers):
                other.done.set()
            for worker in workers:
                worker.stop()
        for injector in injecting:
            report.faults |= injector.counts
        report.worker_exits = sum(worker.exits for worker in workers)
        report.counters.stores_unlike_changelog = _stores_unlike_changelog(settings_of(workers[0].variables), disks)
    return report


@dataclass(frozen=True)
class System:
    """The running system after the faults."""

    settings: Settings
    traffic: Traffic
    losses: Losses
    trainers: list[Trainer]
    patience: float

    def compare(self, report: Report, differences: Path) -> None:
        """Wait for the final statuses, then compare the system with the reference model and fill in the report."""
        self.traffic.connect().close()
        self._await_final_statuses()
        counters, history = report.counters, History(self.settings, self.losses)
        expected, (found, accounts) = history.expected(), self._snapshot()
        # The records that make a table's last foreign writes known to its owner.
        self._touch_every_partition()
        statuses = self._final_statuses()
        without_one_end = {
            key: sorted(states)
            for key in self.traffic.requested
            if len(states := {status.state.value for status in statuses[key]}) != 1
        }
        wrong_end = {key: text for key in self.traffic.requested if (text := self._wrong_end(key, statuses[key]))}
        different: dict[str, Any] = {
            name: (expected[name], found[name]) for name in (*FOLDERS, LEFT_OUT) if expected[name] != found[name]
        }
        altered = self._altered_snapshots()
        letters = [(record.value, dict(record.headers)) for record in read(self.settings.kafka, Topic.DEAD_LETTERS)]
        unfounded = [(value, headers) for value, headers in letters if value not in self.traffic.maybe_poison]
        content = {
            "folders": different,
            "requests": {" ".join(key): ends for key, ends in (without_one_end | wrong_end).items()},
            "snapshots": altered,
            "letters": unfounded,
            "losses": {str(account): count for account, count in accounts.items()},
            "losses expected": {str(account): count for account, count in self.losses.accounts.items()},
        }
        differences.write_text(json.dumps(content, default=_plain, indent=1))
        for name in FOLDERS:
            wanted, exported = ([row["log_id"] for row in contents[name].rows] for contents in (expected, found))
            counters.lost += len(set(wanted) - set(exported))
            counters.duplicated += len(exported) - len(set(exported))
        counters.lost += len(self.traffic.acknowledged - history.logs - self.losses.logs)
        counters.losses_miscounted = sum(
            abs(accounts[account] - self.losses.accounts[account]) for account in accounts | self.losses.accounts
        )
        counters.diverged_folders = len(different)
        counters.requests_without_one_end = len(without_one_end)
        counters.requests_with_wrong_end = len(wrong_end)
        counters.snapshots_altered = len(altered)
        unread = {record.value for record in self.losses.unread}
        counters.dead_letters_missing = len(self.traffic.poison - unread - {value for value, _ in letters})
        counters.dead_letters_unfounded = len(unfounded)
        for account, count in self.losses.accounts.items():
            report.losses[account.cause] = report.losses.get(account.cause, 0) + count
        report.logs_published = len(history.logs)
        report.requests = len(self.traffic.requested)
        report.ends = dict(
            Counter(status.state.value for key in self.traffic.requested for status in statuses[key][:1])
        )

    def _await_final_statuses(self) -> None:
        deadline = time.monotonic() + self.patience
        while self.traffic.requested.keys() - self._final_statuses().keys() and time.monotonic() < deadline:
            time.sleep(0.5)

    def _final_statuses(self) -> dict[RequestKey, list[FineTuneStatus]]:
        """The final statuses of each request; after a crash the same may have been published twice."""
        statuses: dict[RequestKey, list[FineTuneStatus]] = defaultdict(list)
        for record in read(self.settings.kafka, Topic.FINE_TUNE_STATUS):
            status = FineTuneStatus.model_validate_json(record.value)
            if status.state.terminal:
                statuses[status.model, status.request_id].append(status)
        return statuses

    def _wrong_end(self, key: RequestKey, statuses: list[FineTuneStatus]) -> str | None:
        """The end for which there is no cause."""
        request = self.traffic.requested[key]
        unknown = UNKNOWN_FOLDER in (request.data.folders or ())
        fails = {(request.training.epochs == 3) != trainer.second for trainer in self.trainers}
        # What topics lose can leave a folder with less than a training needs.
        some_lost = bool(self.losses.read or self.losses.unread)
        for status in statuses:
            caused = {
                State.CANCELLED: key in self.traffic.cancelled,
                State.REJECTED: unknown or (some_lost and any("examples, at least" in text for text in status.reasons)),
                State.COMPLETED: not unknown and False in fails,
                State.FAILED: status.retryable or (not unknown and True in fails),
            }
            if not caused[status.state]:
                return f"{status.state}: {'; '.join(status.reasons)}"
        return None

    def _altered_snapshots(self) -> list[str]:
        """The addresses at which another manifest is than a job names."""
        store = S3ObjectStore(self.settings.s3)
        named = sorted(self.trainers[0].snapshots)
        return [uri for uri, sha256 in named if hashlib.sha256(store.find(store.key(uri)) or b"").hexdigest() != sha256]

    def _snapshot(self) -> tuple[dict[str, FolderContent], Counter[Account]]:
        """The content of every folder in a last snapshot of the system, and what this tells of as lost."""
        accounts: Counter[Account] = Counter()
        contents: dict[str, FolderContent] = defaultdict(FolderContent)
        job, store = self._last_job(), S3ObjectStore(self.settings.s3)
        manifest = store.find(store.key(job.snapshot_uri)) if job else None
        left_out: Counter[str] = Counter()
        for part in SnapshotManifest.model_validate_json(manifest).parts if manifest else ():
            left_out.update(part.left_out)
            accounts.update({Account(lost.topic, part.partition, lost.cause): lost.records for lost in part.lost})
            for row in _rows(store, part.examples):
                # Of 32 bits.
                row |= {"occurred_at": row["occurred_at"].isoformat(), "strength": round(row["strength"], 6)}
                contents[row["folder_id"]].rows.append(row)
            for row in _rows(store, part.documents):
                document = {"title": row["title"], "text": row["text"]}
                contents[row["folder_id"]].documents[row["document_id"]] = document
        contents[LEFT_OUT].documents = dict(left_out)
        return contents, accounts

    def _last_job(self) -> TrainingJob | None:
        with Publisher(self.settings.kafka) as publisher:
            for attempt in range(5):
                request = FineTuneRequested(request_id=f"last-{attempt}", model=f"last-{attempt}", requested_at=now())
                publisher.publish(Topic.FINE_TUNE_REQUESTS, request, key=request.model)
                deadline = time.monotonic() + max(30, self.patience / 4)
                while time.monotonic() < deadline:
                    if job := self.trainers[0].jobs.get((request.model, request.request_id)):
                        return job
                    time.sleep(0.2)
        return None

    def _touch_every_partition(self) -> None:
        cancel = FineTuneCancelled(request_id="no-such-request", model="none", requested_at=now()).encode()
        with Publisher(self.settings.kafka) as publisher:
            for partition in range(self.settings.kafka.partitions):
                publisher.send_raw(Topic.FINE_TUNE_REQUESTS, cancel, key="none", partition=partition)
            publisher.flush()
        time.sleep(3)


def _plain(content: Any) -> Any:
    return asdict(content) if is_dataclass(content) and not isinstance(content, type) else str(content)


def _rows(store: S3ObjectStore, file: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(store.get(store.key(file.uri)))).to_pylist()
    return rows


def _stores_unlike_changelog(settings: Settings, disks: list[Path]) -> int:
    """The number of partitions, of both tables, for which no worker's RocksDB equals the replayed changelog."""
    differing = 0
    with consumer(settings.kafka) as client:
        for table, topic in zip(_TABLES, changelogs(settings), strict=True):
            for partition in range(settings.kafka.partitions):
                content = replay(client, TopicPartition(topic, partition))
                stores = [path for disk in disks for path in disk.rglob(f"{table}-{partition}.db")]
                differing += bool(content) and all(_rocksdb_content(path) != content for path in stores)
    return differing


def _rocksdb_content(path: Path) -> dict[bytes, bytes]:
    copy = path.with_suffix(".copy")
    shutil.copytree(path, copy)
    try:
        database = Rdict(str(copy), Options(raw_mode=True), access_type=AccessType.read_only())
        items: Any = database.items()
        content = {key: value for key, value in items if not key.startswith(_CHECKPOINT)}
        database.close()
    except Exception:
        # Damaged by a fault, and not read since. RocksDB's errors are of no class of their own.
        return {}
    else:
        return content
    finally:
        shutil.rmtree(copy)
