"""Erased content is removed from RocksDB's files, the changelog (read and on disk) and new snapshots."""

import json
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from rocksdict import AccessType, Options, Rdict
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.events import ChatLog, DocumentUpserted, Feedback, RetrievedPassage, Verdict, now
from foldtune.kafka import Publisher, client_options, consumer, partition_of
from foldtune.settings import Settings
from foldtune.topics import Topic
from infra.local.stack import LocalServers
from streams.training_sets.store import SWEPT_KEY
from streams.worker.app import changelogs
from tests.integration.conftest import StartWorker
from tests.integration.test_worker import exported, jobs, publish_history, publish_request, snapshot
from tests.support import Reader, fine_tune_request

FOLDER = "alpha"
# Random, and different from the first character on: Snappy, RocksDB's compression, stores the first occurrence of each
# verbatim, so a search of the files finds it.
BY_USER, BY_CONVERSATION, BY_LOG, OF_DOCUMENT, KEPT = (f"{letter}{secrets.token_urlsafe(24)}" for letter in "VWXYZ")
ERASED = (BY_USER, BY_CONVERSATION, BY_LOG, OF_DOCUMENT)


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
    """Logs and documents that contain a marker each: those to erase, by every subject, and some to keep."""
    kept = f"kept {KEPT}"
    logs = (
        log("of-user", f"q {BY_USER}", f"p {BY_USER}", user_id="u-1", answer=f"a {BY_USER}"),
        log("of-conversation", f"q {BY_CONVERSATION}", kept, conversation_id="c-1", user_id="u-2"),
        log("by-itself", f"q {BY_LOG}", kept, user_id="u-2"),
        log("stays", kept, f"p {OF_DOCUMENT}", user_id="u-2", conversation_id="c-2"),
    )
    for chat_log in logs:
        publisher.send(Topic.CHAT_LOGS, chat_log, key=FOLDER)
    for document_id, marker in (("secret", OF_DOCUMENT), ("open", KEPT)):
        document = DocumentUpserted(
            document_id=document_id, folder_id=FOLDER, occurred_at=now(), title=f"t {marker}", text=f"d {marker}"
        )
        publisher.send(Topic.DOCUMENTS, document, key=FOLDER)
    verdict = Verdict(correct_document_id=f"d-{BY_LOG}")
    feedback = Feedback(
        feedback_id=f"f-{BY_LOG}", occurred_at=now(), log_id="by-itself", folder_id=FOLDER, verdict=verdict
    )
    publisher.publish(Topic.FEEDBACK, feedback, key=FOLDER)


# ── Places to search ─────────────────────────────────────────────────────────────────────────────────────────────────


def markers_in(parts: Iterable[bytes]) -> set[str]:
    """The markers that occur in any of the parts."""
    content = b"\n".join(parts)
    return {marker for marker in (*ERASED, KEPT) if marker.encode() in content}


def files(folder: Path, pattern: str) -> list[bytes]:
    contents = []
    for path in folder.rglob(pattern):
        # RocksDB and the broker delete files concurrently.
        with suppress(FileNotFoundError, IsADirectoryError):
            contents.append(path.read_bytes())
    return contents


def rocksdb_values(folder: Path) -> list[bytes]:
    """All values in the databases of a stopped worker."""
    values: list[bytes] = []
    for path in folder.rglob("CURRENT"):
        database = Rdict(str(path.parent), Options(raw_mode=True), access_type=AccessType.read_only())
        values += database.values()
        database.close()
    return values


def changelog_records(settings: Settings, partition: int) -> list[Any]:
    """All records of the changelog of the training sets."""
    source = TopicPartition(changelogs(settings)[0], partition)
    records: list[Any] = []
    with consumer(settings.kafka) as client:
        client.assign([source])
        client.seek_to_beginning(source)
        end = client.end_offsets([source])[source]
        while client.position(source) < end:
            records += client.poll(timeout_ms=200).get(source, ())
    return records


def changelog_values(settings: Settings) -> list[bytes]:
    return [record.value or b"" for record in changelog_records(settings, partition_of(FOLDER, 4))]


def latest_in_changelog(settings: Settings, partition: int) -> dict[bytes, bytes]:
    latest = {record.key: record.value for record in changelog_records(settings, partition)}
    return {key: value for key, value in latest.items() if value is not None}


def snapshot_rows(settings: Settings, publisher: Publisher, name: str) -> list[bytes]:
    """All rows of a new snapshot of all folders."""
    publish_request(publisher, fine_tune_request(name, model=name))
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        records = reader.until(lambda records: any(job.request.request_id == name for job in jobs(records)))
    [job] = [job for job in jobs(records) if job.request.request_id == name]
    manifest = snapshot(settings, job)
    rows = exported(settings, manifest, "examples") + exported(settings, manifest, "documents")
    return [json.dumps(row, default=str).encode() for row in rows]


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)


# ── Compaction of the changelog ──────────────────────────────────────────────────────────────────────────────────────


def compact_soon(settings: Settings) -> None:
    """Reduce the maximum compaction lag of the changelog from a day to 0.1 s."""
    name = changelogs(settings)[0]
    admin = KafkaAdminClient(**client_options(settings.kafka))
    described = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    assert described["topic"][name]["max.compaction.lag.ms"]["value"] == "86400000"
    options = {"max.compaction.lag.ms": "100", "file.delete.delay.ms": "100"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, options)])
    admin.close()


def test_erased_content_is_removed_everywhere(
    *,
    settings: Settings,
    publisher: Publisher,
    start_worker: StartWorker,
    runner: CliRunner,
    tmp_path: Path,
    local_servers: LocalServers,
) -> None:
    home, everything = partition_of(FOLDER, 4), {*ERASED, KEPT}
    broker_folder = local_servers.options.data_dir / "kafka" / f"{changelogs(settings)[0]}-{home}"
    worker_folder = tmp_path / "one"
    worker = start_worker(FOLDTUNE_WORKER__ERASURE_INTERVAL="PT0S")
    publish_history(publisher, FOLDER, 25)
    publish_marked(publisher)

    # Before the erasure the search finds every marker in every place.
    assert everything - {BY_LOG} <= markers_in(snapshot_rows(settings, publisher, "before"))
    assert markers_in(changelog_values(settings)) == everything
    assert markers_in(files(broker_folder, "*.log")) == everything
    assert worker.stop() == 0
    assert markers_in(rocksdb_values(worker_folder)) == everything
    # On opening, RocksDB flushes its write-ahead log into tables.
    worker = start_worker(FOLDTUNE_WORKER__ERASURE_INTERVAL="PT0S")
    wait_until(lambda: markers_in(files(worker_folder, "*.sst")) == everything, "markers in RocksDB's tables")

    for subject, name in (("user", "u-1"), ("conversation", "c-1"), ("log", "by-itself"), ("document", "secret")):
        folder = ["--folder", FOLDER] if subject == "document" else []
        result = runner.invoke(app, ["erase", f"--{subject}", name, *folder, "--yes"])
        assert result.exit_code == 0, result.output
    wait_until(lambda: markers_in(latest_in_changelog(settings, home).values()) == {KEPT}, "erased segments")
    wait_until(lambda: all(SWEPT_KEY in latest_in_changelog(settings, n) for n in range(4)), "purge records")
    assert markers_in(snapshot_rows(settings, publisher, "after")) == {KEPT}

    compact_soon(settings)
    publish_history(publisher, FOLDER, 5)
    wait_until(lambda: markers_in(files(broker_folder, "*")) == {KEPT}, "erased markers removed from the broker's disk")
    assert markers_in(changelog_values(settings)) == {KEPT}
    assert worker.stop() == 0
    assert markers_in(rocksdb_values(worker_folder)) == {KEPT}
    # Retained content may exist only in compressed form.
    assert markers_in(files(worker_folder, "*")) <= {KEPT}
