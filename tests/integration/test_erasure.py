"""What is to be forgotten is gone: from RocksDB's files, from the changelog as read and on disk, from new snapshots."""

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
from streams.training_sets.store import PURGED_KEY
from streams.worker.app import changelogs
from tests.integration.conftest import StartWorker
from tests.integration.test_worker import ask, exported, jobs, publish_history, snapshot
from tests.support import Reader, fine_tune_request

FOLDER = "alpha"
# So random, and from the first character so different, that RocksDB's compression (Snappy) finds nothing to shorten
# where one stands for the first time: it is there as it is.
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
    """A user's, a conversation's and a single log, a document, and what stays beside them."""
    kept = f"kept {KEPT}"
    logs = (
        log("of-user", f"q {BY_USER}", f"p {BY_USER}", user_id="u-1", answer=f"a {BY_USER}"),
        log("of-conversation", f"q {BY_CONVERSATION}", kept, conversation_id="c-1", user_id="u-2"),
        log("by-itself", f"q {BY_LOG}", kept, user_id="u-2"),
        log("stays", kept, f"p {OF_DOCUMENT}", user_id="u-2", conversation_id="c-2"),
    )
    for one in logs:
        publisher.send(Topic.CHAT_LOGS, one, key=FOLDER)
    for document_id, word in (("secret", OF_DOCUMENT), ("open", KEPT)):
        document = DocumentUpserted(
            document_id=document_id, folder_id=FOLDER, occurred_at=now(), title=f"t {word}", text=f"d {word}"
        )
        publisher.send(Topic.DOCUMENTS, document, key=FOLDER)
    verdict = Verdict(correct_document_id=f"d-{BY_LOG}")
    feedback = Feedback(
        feedback_id=f"f-{BY_LOG}", occurred_at=now(), log_id="by-itself", folder_id=FOLDER, verdict=verdict
    )
    publisher.publish(Topic.FEEDBACK, feedback, key=FOLDER)


# ── Where to look ────────────────────────────────────────────────────────────────────────────────────────────────────


def found_in(parts: Iterable[bytes]) -> set[str]:
    """Which of the markers there are in any of the parts."""
    content = b"\n".join(parts)
    return {marker for marker in (*ERASED, KEPT) if marker.encode() in content}


def files(folder: Path, pattern: str) -> list[bytes]:
    contents = []
    for path in folder.rglob(pattern):
        # RocksDB and the broker delete files while one looks.
        with suppress(FileNotFoundError, IsADirectoryError):
            contents.append(path.read_bytes())
    return contents


def rocksdb_values(folder: Path) -> list[bytes]:
    """What a stopped worker's databases tell when asked."""
    values: list[bytes] = []
    for path in folder.rglob("CURRENT"):
        database = Rdict(str(path.parent), Options(raw_mode=True), access_type=AccessType.read_only())
        values += database.values()
        database.close()
    return values


def changelog_records(settings: Settings, partition: int) -> list[Any]:
    """The changelog of the training sets, as anyone reads it."""
    place = TopicPartition(changelogs(settings)[0], partition)
    records: list[Any] = []
    with consumer(settings.kafka) as client:
        client.assign([place])
        client.seek_to_beginning(place)
        end = client.end_offsets([place])[place]
        while client.position(place) < end:
            records += client.poll(timeout_ms=200).get(place, ())
    return records


def changelog_values(settings: Settings) -> list[bytes]:
    return [record.value or b"" for record in changelog_records(settings, partition_of(FOLDER, 4))]


def latest_in_changelog(settings: Settings, partition: int) -> dict[bytes, bytes]:
    latest = {record.key: record.value for record in changelog_records(settings, partition)}
    return {key: value for key, value in latest.items() if value is not None}


def snapshot_rows(settings: Settings, publisher: Publisher, name: str) -> list[bytes]:
    """Every row of a new snapshot of everything."""
    ask(publisher, fine_tune_request(name, model=name))
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        records = reader.until(lambda records: any(job.request.request_id == name for job in jobs(records)))
    [job] = [job for job in jobs(records) if job.request.request_id == name]
    manifest = snapshot(settings, job)
    rows = exported(settings, manifest, "examples") + exported(settings, manifest, "documents")
    return [json.dumps(row, default=str).encode() for row in rows]


def await_that(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)


# ── What the test does to the changelog ──────────────────────────────────────────────────────────────────────────────


def compact_soon(settings: Settings) -> None:
    """The one setting that the worker's changelogs have for this, in seconds instead of a day."""
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
    worker = start_worker()
    publish_history(publisher, FOLDER, 25)
    publish_marked(publisher)

    # Before: all of it is everywhere that is looked at, so the looking is worth something.
    assert everything - {BY_LOG} <= found_in(snapshot_rows(settings, publisher, "before"))
    assert found_in(changelog_values(settings)) == everything
    assert found_in(files(broker_folder, "*.log")) == everything
    assert worker.stop() == 0
    assert found_in(rocksdb_values(worker_folder)) == everything
    # Opened again, RocksDB moves what is in its own log into tables.
    worker = start_worker()
    await_that(lambda: found_in(files(worker_folder, "*.sst")) == everything, "words in RocksDB's tables", 20)

    for subject, name in (("user", "u-1"), ("conversation", "c-1"), ("log", "by-itself"), ("document", "secret")):
        result = runner.invoke(app, ["erase", f"--{subject}", name, "--yes"])
        assert result.exit_code == 0, result.output
    await_that(lambda: found_in(latest_in_changelog(settings, home).values()) == {KEPT}, "segments without the words")
    await_that(lambda: all(PURGED_KEY in latest_in_changelog(settings, n) for n in range(4)), "purged")
    assert found_in(snapshot_rows(settings, publisher, "after")) == {KEPT}

    compact_soon(settings)
    publish_history(publisher, FOLDER, 5)
    await_that(lambda: found_in(files(broker_folder, "*")) == {KEPT}, "words gone from the broker's disk")
    assert found_in(changelog_values(settings)) == {KEPT}
    assert worker.stop() == 0
    assert found_in(rocksdb_values(worker_folder)) == {KEPT}
    # What is kept may be there in a compressed form only.
    assert found_in(files(worker_folder, "*")) <= {KEPT}
