"""Proof by markers: texts that are nowhere else are put in by every way, erased, and searched for as bytes.

What Kafka and RocksDB remove in the end is searched for in their files too. Of the input topics and of ``dead-letters``
it is what can be read: brokers delete records from the disk with their segments.
"""

import io
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from rocksdict import AccessType, Options, Rdict
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.commands.output import print_table
from foldtune.events import ChatLog, DocumentUpserted, Feedback, FineTuneCancelled, RetrievedPassage, Verdict, now
from foldtune.kafka import Publisher, client_options, consumer
from foldtune.object_keys import checkpoint_key
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from foldtune.topic_admin import delete_records
from foldtune.topics import Topic
from infra.local.stack import LocalServers
from streams.snapshots.export import EXPORT_PREFIX
from streams.worker.app import changelogs
from tests.integration.conftest import StartWorker
from tests.integration.erasure_sabotage import WITHOUT
from tests.integration.test_worker import ended, exported, jobs, publish_history, publish_request, snapshot
from tests.support import ChildProcess, Reader, fine_tune_request
from trainers.environment import WORK_PREFIX

FOLDER = "alpha"
# Random, and different from the first character on: Snappy, RocksDB's compression, stores the first occurrence of each
# verbatim, so a search of the files finds it.
NAMES = (
    *("question", "answer", "passage", "conversation", "feedback", "title", "document", "rejected"),
    *("user", "requester", "kept"),
)
MARKERS = {name: f"{letter}{secrets.token_urlsafe(24)}" for name, letter in zip(NAMES, "NOPQRSTUVWX", strict=True)}
# Not erased, and who requested a training: no erasure reaches that.
REST = {"kept", "requester"}
# The name of who is erased, where that was requested.
STAYS = {f"topic {Topic.ERASURES.label}": {"user"}}
TEXTS = f"q {MARKERS['question']}", f"p {MARKERS['passage']}", f"a {MARKERS['answer']}"


def log(name: str, question: str, text: str, **fields: Any) -> ChatLog:
    passages = (
        RetrievedPassage(document_id="d0", folder_id=FOLDER, rank=1),
        RetrievedPassage(document_id="secret", folder_id=FOLDER, rank=2, text=text),
    )
    return ChatLog(
        log_id=name,
        occurred_at=now(),
        agent_id="agent",
        question=question,
        folder_id=FOLDER,
        retrieved=passages,
        cited_document_ids=("d0",),
        **fields,
    )


def publish_marked(publisher: Publisher) -> None:
    """Every marker but the requester's, by every way."""
    question, passage, answer = TEXTS
    user, kept = MARKERS["user"], f"kept {MARKERS['kept']}"
    conversation = MARKERS["conversation"]
    logs = (
        log("of-user", question, passage, user_id=user, answer=answer, conversation_id=conversation),
        log("of-conversation", question, passage, conversation_id="c-1", user_id="u-2"),
        log("by-itself", question, passage, user_id="u-2"),
        log("stays", kept, f"d {MARKERS['document']}", user_id="u-2", conversation_id="c-2"),
    )
    for chat_log in logs:
        publisher.send(Topic.CHAT_LOGS, chat_log, key=FOLDER)
    for document_id, title, text in (("secret", "title", "document"), ("open", "kept", "kept")):
        document = DocumentUpserted(
            document_id=document_id,
            folder_id=FOLDER,
            occurred_at=now(),
            title=f"t {MARKERS[title]}",
            text=f"d {MARKERS[text]}",
        )
        publisher.send(Topic.DOCUMENTS, document, key=FOLDER)
    name = MARKERS["feedback"]
    verdict = Verdict(correct_document_id=f"d-{name}")
    feedback = Feedback(
        feedback_id=f"f-{name}", occurred_at=now(), log_id="by-itself", folder_id=FOLDER, verdict=verdict
    )
    publisher.send(Topic.FEEDBACK, feedback, key=FOLDER)
    # Rejected, the one to be kept before the other.
    for user_id, text in (("u-2", kept), (user, f"q {MARKERS['rejected']}")):
        value = json.loads(log("rejected", text, text, user_id=user_id).encode())
        value |= {"occurred_at": "yesterday", "retrieved": []}
        publisher.send_raw(Topic.CHAT_LOGS, json.dumps(value).encode(), key=FOLDER)
    publisher.flush()


# ── Places to search ─────────────────────────────────────────────────────────────────────────────────────────────────


def markers_in(parts: Iterable[bytes]) -> set[str]:
    """The names of the markers that occur in any of the parts."""
    content = b"\n".join(parts)
    return {name for name, marker in MARKERS.items() if marker.encode() in content}


def files(folder: Path, pattern: str = "*") -> list[bytes]:
    contents = []
    for path in folder.rglob(pattern):
        # RocksDB and the broker delete files concurrently.
        with suppress(FileNotFoundError, IsADirectoryError):
            contents.append(path.read_bytes())
    return contents


def rocksdb_values(folder: Path) -> list[bytes]:
    """All values in the databases of a stopped worker; the files have them compressed."""
    values: list[bytes] = []
    for path in folder.rglob("CURRENT"):
        database = Rdict(str(path.parent), Options(raw_mode=True), access_type=AccessType.read_only())
        values += database.values()
        database.close()
    return values


def readable(settings: Settings, topics: Iterable[str]) -> dict[str, list[bytes]]:
    """Keys, values and headers of all records of each topic, decompressed."""
    parts: dict[str, list[bytes]] = {topic: [] for topic in topics}
    with consumer(settings.kafka) as client:
        sources = [TopicPartition(topic, number) for topic in parts for number in range(settings.kafka.partitions)]
        client.assign(sources)
        client.seek_to_beginning(*sources)
        ends = client.end_offsets(sources)
        while any(client.position(source) < end for source, end in ends.items()):
            for records in client.poll(timeout_ms=200).values():
                for record in records:
                    parts[record.topic] += [
                        record.key or b"",
                        record.value or b"",
                        *(value for _, value in record.headers),
                    ]
    return parts


def objects(store: S3ObjectStore, prefix: str) -> Iterator[bytes]:
    for key in store.list(prefix):
        content = store.find(key) or b""
        yield content
        with suppress(pa.ArrowException):
            yield json.dumps(pq.read_table(io.BytesIO(content)).to_pylist(), default=str).encode()


@dataclass
class System:
    """Everything that a text may be in."""

    settings: Settings
    folder: Path
    broker: Path
    workers: tuple[str, ...]

    def search(self, *, stopped: bool = False) -> dict[str, set[str]]:
        """The names of the markers in each place."""
        names = {topic.named(self.prefix): f"topic {topic.label}" for topic in Topic}
        names |= {name: f"changelog {name.split('-', 1)[1]}" for name in changelogs(self.settings)}
        records = readable(self.settings, names)
        found = {place: markers_in(records[name]) for name, place in names.items()}
        found["changelogs on the broker's disk"] = self.on_broker()
        for name in self.workers:
            folder = self.folder / name
            found[f"worker {name}: RocksDB, temporary files"] = markers_in(
                files(folder) + (rocksdb_values(folder) if stopped else [])
            )
        found["trainings' work_dir"] = markers_in(files(self.settings.trainer.work_dir))
        store = S3ObjectStore(self.settings.s3)
        for prefix in ("snapshots", "checkpoints", "jobs", "models", "statuses"):
            found[f"bucket {prefix}/"] = markers_in(objects(store, f"{prefix}/"))
        found["temporary folder"] = markers_in(files(self.folder / "tmp"))
        found["logs"] = markers_in(path.read_bytes() for path in self.folder.glob("*.log"))
        return found

    @property
    def prefix(self) -> str:
        return self.settings.kafka.topic_prefix

    def on_broker(self) -> set[str]:
        folders = [folder for name in changelogs(self.settings) for folder in self.broker.glob(f"{name}-*")]
        # Not the indexes, which are large and empty.
        return markers_in(part for folder in folders for part in files(folder, "*.log*"))

    def on_disks(self) -> set[str]:
        """Where the last to go is compacted by the broker and by workers."""
        return self.on_broker() | markers_in(part for name in self.workers for part in files(self.folder / name))

    def compact_soon(self) -> None:
        """Reduce the maximum compaction lag of the changelog from a day to 0.1 s."""
        name = changelogs(self.settings)[0]
        admin = KafkaAdminClient(**client_options(self.settings.kafka))
        described = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        assert described["topic"][name]["max.compaction.lag.ms"]["value"] == "86400000"
        options = {"max.compaction.lag.ms": "100", "file.delete.delay.ms": "100"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, options)])
        admin.close()

    def delete_input_records(self) -> None:
        """As an operator does with Kafka's own tools."""
        with consumer(self.settings.kafka) as client:
            for topic in (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK):
                name = topic.named(self.prefix)
                ends = client.end_offsets([TopicPartition(name, n) for n in range(self.settings.kafka.partitions)])
                delete_records(self.settings.kafka, topic, {source.partition: end for source, end in ends.items()})


def snapshot_rows(settings: Settings, publisher: Publisher, name: str) -> list[bytes]:
    """All rows of a new snapshot of all folders, whose request is then cancelled."""
    request = fine_tune_request(name, model=name).model_copy(update={"requested_by": MARKERS["requester"]})
    publish_request(publisher, request)
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        records = reader.until(lambda records: any(job.request.request_id == name for job in jobs(records)))
        cancelled = FineTuneCancelled(request_id=name, model=name, requested_at=now())
        publisher.publish(Topic.FINE_TUNE_REQUESTS, cancelled, key=name)
        reader.until(ended(name))
    [job] = [job for job in jobs(records) if job.request.request_id == name]
    manifest = snapshot(settings, job)
    rows = exported(settings, manifest, "examples") + exported(settings, manifest, "documents")
    return [json.dumps(row, default=str).encode() for row in rows]


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def plant_leftovers(system: System) -> None:
    """What a worker and a training that were killed leave, and a checkpoint."""
    text = MARKERS["question"].encode()
    (store_folder,) = (system.folder / system.workers[0]).glob("app-*")
    for folder in (
        store_folder / "exports" / f"{EXPORT_PREFIX}left",
        system.settings.trainer.work_dir / f"{WORK_PREFIX}left",
    ):
        folder.mkdir(parents=True)
        (folder / "examples").write_bytes(text)
    S3ObjectStore(system.settings.s3).put(checkpoint_key("before", "before", "v"), text)


ERASURES = (
    ("--user", MARKERS["user"]),
    ("--conversation", "c-1"),
    ("--log", "by-itself"),
    ("--document", "secret", "--folder", FOLDER),
)
ROCKSDB = "worker one: RocksDB, temporary files"
# Steps beside the worker's, which a sabotage leaves out.
COMPACTION, ARTIFACTS, RECORDS, LAUNCHER = (
    "compaction by the brokers",
    "artifacts",
    "input records",
    "a launcher's start",
)


class Proof:
    """The way of the markers, and where they are before and after."""

    def __init__(
        self,
        *,
        settings: Settings,
        publisher: Publisher,
        start_worker: StartWorker,
        runner: CliRunner,
        variables: dict[str, str],
        tmp_path: Path,
        local_servers: LocalServers,
    ) -> None:
        self.settings, self.publisher, self.runner = settings, publisher, runner
        self._start_worker, self._variables = start_worker, variables
        self._servers, self._folder = local_servers, tmp_path
        (tmp_path / "tmp").mkdir()

    def run(self, without: str | None = None, workers: tuple[str, ...] = ("one",)) -> dict[str, set[str]]:
        """Put in, erase, and search; what is left in each place that should not be there."""
        system = System(self.settings, self._folder, self._servers.options.data_dir / "kafka", workers)
        running = self._start(workers, without)
        publish_history(self.publisher, FOLDER, 25)
        publish_marked(self.publisher)
        in_snapshot = markers_in(snapshot_rows(self.settings, self.publisher, "before"))
        assert in_snapshot == {"question", "passage", "conversation", "feedback", "title", "document", "kept"}
        assert [worker.stop() for worker in running] == [0] * len(workers)
        plant_leftovers(system)
        before = system.search(stopped=True)

        running = self._start(workers, without)
        launcher = None
        if without != LAUNCHER:
            launcher = ChildProcess(["launcher"], self._variables, self._folder / "launcher.log")
        erasure_ids = [self._command("erase", *options, "--yes").split()[1] for options in ERASURES]
        for erasure_id in erasure_ids:
            assert "erased in all 4 partitions" in self._command("erase", "--status", erasure_id, "--wait", "90")
        if without != ARTIFACTS:
            for options in ERASURES:
                self._command("erase", *options, "--artifacts", "--delete", "--yes")
        if without != RECORDS:
            system.delete_input_records()
        snapshot_rows(self.settings, self.publisher, "after")
        if without != COMPACTION:
            system.compact_soon()
        publish_history(self.publisher, FOLDER, 5)
        with suppress(AssertionError):
            wait_until(lambda: not system.on_disks() - REST, "compacted", 20 if without else 90)
        assert [worker.stop() for worker in running] == [0] * len(workers)
        if launcher:
            assert launcher.stop() == 0
        after = system.search(stopped=True)
        self._print(before, after)
        self._check_search(before)
        # What is to stay has stayed.
        assert all("kept" in after[place] for place in ("topic dead-letters", "bucket snapshots/"))
        return left(after)

    def _start(self, workers: tuple[str, ...], without: str | None) -> list[ChildProcess]:
        variables = {
            "FOLDTUNE_WORKER__ERASURE_INTERVAL": "PT0S",
            "FOLDTUNE_WORKER__STANDBY_REPLICAS": str(len(workers) - 1),
            "TMPDIR": str(self._folder / "tmp"),
            "ERASURE_WITHOUT": without or "",
        }
        module = "tests.integration.erasure_sabotage" if without in WITHOUT else "foldtune"
        return [self._start_worker(name, module, **variables) for name in workers]

    def _command(self, *arguments: str) -> str:
        result = self.runner.invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.stdout

    def _print(self, before: dict[str, set[str]], after: dict[str, set[str]]) -> None:
        rows = [(place, *(", ".join(sorted(found[place])) for found in (before, after))) for place in before]
        print_table(("place", "before", "after"), [row for row in rows if any(row[1:])])

    def _check_search(self, before: dict[str, set[str]]) -> None:
        """Before the erasure the search finds the markers in every place that has them."""
        text = {"question", "passage", "conversation"}
        sets = {*text, "feedback", "title", "document", "user", "kept"}
        assert before["topic chat-logs"] >= {*text, "answer", "document", "rejected", "user", "kept"}
        assert before["topic documents"] == {"title", "document", "kept"}
        assert before["topic feedback"] == {"feedback"}
        assert before["topic dead-letters"] == {"rejected", "user", "kept"}
        assert before["bucket snapshots/"] == {*sets} - {"user"}
        assert before["bucket checkpoints/"] == before["trainings' work_dir"] == {"question"}
        for place in ("changelog training-sets-changelog", "changelogs on the broker's disk"):
            assert before[place] >= sets
        assert all(before[place] >= sets for place in before if place.startswith("worker "))
        assert before["topic fine-tune-requests"] == {"requester"}


def left(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """What should not be there any more, by place."""
    return {place: wrong for place, markers in found.items() if (wrong := markers - REST - STAYS.get(place, set()))}


@pytest.fixture
def proof(  # noqa: PLR0917  fixtures
    settings: Settings,
    publisher: Publisher,
    start_worker: StartWorker,
    runner: CliRunner,
    variables: dict[str, str],
    tmp_path: Path,
    local_servers: LocalServers,
) -> Proof:
    """On an isolated system."""
    return Proof(
        settings=settings,
        publisher=publisher,
        start_worker=start_worker,
        runner=runner,
        variables=variables,
        tmp_path=tmp_path,
        local_servers=local_servers,
    )


def test_erased_content_is_removed_everywhere(proof: Proof) -> None:
    assert proof.run() == {}


@pytest.mark.matrix
def test_erased_content_is_removed_from_standbys(proof: Proof) -> None:
    assert proof.run(workers=("one", "two")) == {}


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("without", "places"),
    [
        # Snapshots are without it even so: the export's process applies erasures too.
        ("application", {"changelog training-sets-changelog", ROCKSDB}),
        ("compaction of RocksDB", {ROCKSDB}),
        ("removal of leftovers", {ROCKSDB}),
        ("compaction of standbys", {ROCKSDB, ROCKSDB.replace("one", "two")}),
        ("silence of the log", {"logs"}),
        (COMPACTION, {"changelog training-sets-changelog", "changelogs on the broker's disk"}),
        (ARTIFACTS, {"bucket snapshots/", "bucket checkpoints/", "topic dead-letters"}),
        (RECORDS, {"topic chat-logs", "topic documents", "topic feedback"}),
        (LAUNCHER, {"trainings' work_dir"}),
    ],
)
def test_the_search_finds_what_a_missing_step_leaves(proof: Proof, without: str, places: set[str]) -> None:
    standbys = without == "compaction of standbys"
    found = proof.run(without, workers=("one", "two") if standbys else ("one",))
    # Of two workers, whichever is the standby.
    assert ({*found} & places) if standbys else ({*found} >= places)
