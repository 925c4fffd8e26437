"""Snapshots of before an erasure: found, written anew, and the models that were trained on them."""

import hashlib
import io
import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from foldtune.events import (
    ErasureRequested,
    FineTuneRequested,
    ModelReference,
    SnapshotFile,
    SnapshotManifest,
    SnapshotPart,
    TrainingJob,
)
from foldtune.knobs import TrainingKnobs
from foldtune.object_keys import (
    EVALUATION,
    SnapshotKind,
    checkpoint_key,
    job_key,
    latest_key,
    manifest_key,
    model_prefix,
    snapshot_file_key,
    snapshot_manifest_key,
)
from foldtune.settings import Settings
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from foldtune.snapshot_schema import EVALUATION as EVALUATION_SCHEMA
from foldtune.testing import MemoryObjectStore
from streams.commands import erased_artifacts
from streams.snapshots.past_artifacts import PastArtifacts
from streams.training_sets.erasure_preview import erasures_of
from trainers.data.snapshot import read_snapshot

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def passage(document_id: str, text: str | None = "words") -> dict[str, str | None]:
    return {"folder_id": "f", "document_id": document_id, "text": text}


def example(log_id: str, *, conversation_id: str | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "log_id": log_id,
        "occurred_at": NOON,
        "folder_id": "f",
        "agent_id": "a",
        "conversation_id": conversation_id,
        "question": f"question of {log_id}",
        "positive": passage("d1"),
        "label": "cited",
        "strength": 1.0,
        "negatives": [passage("d2"), passage("d3", None)],
        **changes,
    }


ROWS = [example("l1", conversation_id="c"), example("l2"), example("l3", positive=None, label="disliked")]
# The sample of a folder that the request does not name.
OTHER_ROWS = [example("l4", folder_id="other", agent_id="b")]
DOCUMENTS_ROWS = [{"folder_id": "f", "document_id": f"d{n}", "title": "t", "text": f"text {n}"} for n in (1, 2)]


class Bucket:
    """With the snapshot, checkpoint, job and model of each request."""

    def __init__(self) -> None:
        self.store = MemoryObjectStore()
        self.jobs: dict[str, TrainingJob] = {}

    def add(
        self, request_id: str, base: str = "hf://org/model", *, published: bool = True, others: bool = False
    ) -> TrainingJob:
        store = self.store
        examples = self._put("examples", request_id, pa.Table.from_pylist(ROWS, EXAMPLES))
        documents = self._put("documents", request_id, pa.Table.from_pylist(DOCUMENTS_ROWS, DOCUMENTS))
        sample = self._put("other-examples", request_id, pa.Table.from_pylist(OTHER_ROWS, EXAMPLES)) if others else None
        part = SnapshotPart(
            request_id=request_id,
            model="m",
            partition=0,
            examples=examples,
            documents=documents,
            other_examples=sample,
        )
        manifest = SnapshotManifest(request_id=request_id, model="m", created_at=NOON, parts=(part,))
        key, output = snapshot_manifest_key("m", request_id), model_prefix("m", f"v-{request_id}")
        store.put(key, manifest.encode())
        job = TrainingJob(
            request=FineTuneRequested(request_id=request_id, model="m", requested_at=NOON),
            base_model=ModelReference(uri=base),
            snapshot_uri=store.uri(key),
            snapshot_sha256=hashlib.sha256(manifest.encode()).hexdigest(),
            output_uri=store.uri(output),
            version=f"v-{request_id}",
            published_at=NOON,
            max_seconds=60,
        )
        store.put(job_key("m", request_id), job.encode())
        store.put(checkpoint_key("m", request_id, job.version), b"tensors")
        if published:
            store.put(manifest_key(output), b"{}")
        return job

    def _put(self, kind: SnapshotKind, request_id: str, table: pa.Table) -> SnapshotFile:
        output = io.BytesIO()
        pq.write_table(table, output)
        sha256 = hashlib.sha256(output.getvalue()).hexdigest()
        key = snapshot_file_key("m", request_id, kind, 0, sha256)
        self.store.put(key, output.getvalue())
        return SnapshotFile(uri=self.store.uri(key), sha256=sha256, rows=table.num_rows)

    def past(self, subject: str, subject_id: str, ended: Collection[str] = ("r",), **fields: Any) -> PastArtifacts:
        content = {"erasure_id": "e", "occurred_at": NOON, "subject": subject, "subject_id": subject_id, **fields}
        erasures = erasures_of(Settings(), ErasureRequested.model_validate(content))
        return PastArtifacts(self.store, erasures, {("m", request_id) for request_id in ended})

    def rows(self, request_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What a restoration reads, which verifies every digest."""
        job = TrainingJob.model_validate_json(self.store.get(job_key("m", request_id)))
        snapshot = read_snapshot(self.store, job.snapshot_uri, job.snapshot_sha256)
        return snapshot.examples.to_pylist(), snapshot.documents.to_pylist()

    def other_ids(self, request_id: str) -> list[str]:
        job = TrainingJob.model_validate_json(self.store.get(job_key("m", request_id)))
        rows = read_snapshot(self.store, job.snapshot_uri, job.snapshot_sha256).other_examples.to_pylist()
        return [row["log_id"] for row in rows]


@pytest.fixture
def bucket() -> Bucket:
    made = Bucket()
    made.add("r")
    return made


@pytest.mark.parametrize("subject", [("log", "l4"), ("agent", "b"), ("folder", "other")])
def test_the_sample_of_other_folders_is_written_anew_too(subject: tuple[str, str]) -> None:
    bucket = Bucket()
    bucket.add("r", others=True)
    (snapshot,) = bucket.past(*subject).snapshots()
    bucket.past(*subject).erase(snapshot)
    assert bucket.other_ids("r") == []
    assert [row["log_id"] for row in bucket.rows("r")[0]] == ["l1", "l2", "l3"]
    assert list(bucket.past(*subject).snapshots()) == []


@pytest.mark.parametrize(
    ("subject", "fields", "left", "changed"),
    [
        (("log", "l2"), {}, ["l1", "l3"], 1),
        (("conversation", "c"), {}, ["l2", "l3"], 1),
        (("agent", "a"), {}, [], 3),
        (("folder", "f"), {}, [], 5),
        (("log", "l2"), {"folder_id": "g"}, ["l1", "l2", "l3"], 0),
        (("log", "l2"), {"occurred_at": NOON - timedelta(days=1)}, ["l1", "l2", "l3"], 0),
    ],
)
def test_a_snapshot_is_written_anew_without_what_is_erased(
    bucket: Bucket, subject: tuple[str, str], fields: dict[str, Any], left: list[str], changed: int
) -> None:
    before = bucket.store.list("")
    snapshots = list(bucket.past(*subject, **fields).snapshots())
    assert sum(sum(snapshot.files.values()) for snapshot in snapshots) == changed
    # Looking changes nothing.
    assert bucket.store.list("") == before
    for snapshot in snapshots:
        bucket.past(*subject, **fields).erase(snapshot)
    assert [row["log_id"] for row in bucket.rows("r")[0]] == left
    assert list(bucket.past(*subject, **fields).snapshots()) == []
    # Nothing of the old files is left, nor is the checkpoint.
    assert len(bucket.store.list("snapshots/")) == 3
    assert bucket.store.list("checkpoints/") == ([] if changed else before[:1])


def test_the_text_of_an_erased_document_leaves_the_examples_and_these_stay(bucket: Bucket) -> None:
    past = bucket.past("document", "d1", folder_id="f")
    (snapshot,) = past.snapshots()
    past.erase(snapshot)
    examples, documents = bucket.rows("r")
    assert [document["document_id"] for document in documents] == ["d2"]
    assert [row["positive"] and row["positive"]["text"] for row in examples] == [None, None, None]
    assert [[found["text"] for found in row["negatives"]] for row in examples] == [["words", None]] * 3
    assert [row["question"] for row in examples] == [row["question"] for row in ROWS]


def test_a_snapshot_that_is_written_anew_has_a_row_group_for_each_folder(bucket: Bucket) -> None:
    rows = [example(f"l{number}", folder_id=folder) for folder in ("f", "g") for number in range(3)]
    bucket._put("examples", "s", pa.Table.from_pylist(rows, EXAMPLES))
    past = bucket.past("log", "l1", ended=("r", "s"))
    for snapshot in past.snapshots():
        past.erase(snapshot)
    keys = [key for key in bucket.store.list("snapshots/") if "examples" in key]
    files = [pq.ParquetFile(pa.BufferReader(bucket.store.get(key))) for key in keys]
    groups = [
        [file.read_row_group(n)["folder_id"].unique().to_pylist() for n in range(file.num_row_groups)] for file in files
    ]
    assert sorted(groups) == [[["f"]], [["f"], ["g"]]]


def test_a_snapshot_is_in_use_until_its_request_has_ended() -> None:
    bucket = Bucket()
    bucket.add("r", published=False)
    (snapshot,) = bucket.past("log", "l1", ended=()).snapshots()
    assert not snapshot.ended
    assert snapshot.request == "m/r"
    (snapshot,) = bucket.past("log", "l1").snapshots()
    assert snapshot.ended


def test_the_snapshot_of_a_cancelled_request_whose_training_went_on_is_in_use_until_its_model_is_published() -> None:
    # The status of such a request is not published again when the training has ended with a model.
    bucket = Bucket()
    bucket.add("r", published=False)
    assert [snapshot.ended for snapshot in bucket.past("log", "l1", ended=()).snapshots()] == [False]
    bucket.add("r", published=True)
    assert [snapshot.ended for snapshot in bucket.past("log", "l1", ended=()).snapshots()] == [True]


def test_files_that_no_manifest_names_are_found_too(bucket: Bucket) -> None:
    # Of an export that was repeated, or whose request failed.
    bucket.store.delete(snapshot_manifest_key("m", "r"))
    (snapshot,) = bucket.past("log", "l1").snapshots()
    bucket.past("log", "l1").erase(snapshot)
    contents = b"".join(bucket.store.get(key) for key in bucket.store.list("snapshots/"))
    assert b"question of l1" not in contents
    assert b"question of l2" in contents


def with_flipped_byte(content: bytes, at: int) -> bytes:
    at %= len(content)
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def stranger(content: bytes) -> bytes:
    output = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(content)).drop_columns(["log_id"]), output)
    return output.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"damaged",
        # In the data of the first column, in its page's header, and in the footer.
        lambda content: content.replace(b"l1", b"\xff\xff"),
        lambda content: with_flipped_byte(content, 5),
        lambda content: with_flipped_byte(content, -200),
        lambda content: content[: len(content) // 2],
        stranger,
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_left(bucket: Bucket, damage: Callable[[bytes], bytes]) -> None:
    (key,) = (key for key in bucket.store.list("snapshots/") if "examples" in key)
    damaged = damage(bucket.store.get(key))
    bucket.store.put(key, damaged)
    (snapshot,) = bucket.past("log", "l2").snapshots()
    bucket.past("log", "l2").erase(snapshot)
    assert snapshot.unreadable == [key]
    assert bucket.store.get(key) == damaged


def test_the_command_names_files_that_cannot_be_read_and_fails(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = bucket.store.list("snapshots/")[0]
    bucket.store.put(key, b"damaged")
    monkeypatch.setattr(erased_artifacts, "S3ObjectStore", lambda _: bucket.store)
    monkeypatch.setattr(erased_artifacts, "_ended_requests", lambda _: {("m", "r")})
    monkeypatch.setattr(erased_artifacts, "letters_that_name", lambda *_: [])
    erasure = ErasureRequested(erasure_id="e", occurred_at=NOON, subject="log", subject_id="l1")
    with pytest.raises(typer.Exit) as exited:
        erased_artifacts.handle_artifacts(erasure, Settings(), delete=True, yes=True)
    assert exited.value.exit_code == 1
    output = capsys.readouterr()
    assert "0 snapshots and 0 evaluations written anew" in output.out
    assert key in output.err
    assert "keep this list of models" in output.err


def test_the_command_counts_trainings_whose_snapshot_is_deleted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.add("s")
    for key in bucket.store.list("snapshots/"):
        bucket.store.delete(key)
    monkeypatch.setattr(erased_artifacts, "S3ObjectStore", lambda _: bucket.store)
    monkeypatch.setattr(erased_artifacts, "_ended_requests", lambda _: set())
    monkeypatch.setattr(erased_artifacts, "letters_that_name", lambda *_: [])
    erasure = ErasureRequested(erasure_id="e", occurred_at=NOON, subject="log", subject_id="l1")
    erased_artifacts.handle_artifacts(erasure, Settings(), delete=False, yes=True)
    output = capsys.readouterr()
    assert "nothing of before has it" in output.out
    assert "2 trainings had snapshots that are deleted" in output.err


def test_an_erasure_that_was_cut_short_is_repeated(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    past = bucket.past("log", "l1")
    (snapshot,) = past.snapshots()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryObjectStore, "delete", lambda *_: None)
        past.erase(snapshot)
    (snapshot,) = past.snapshots()
    past.erase(snapshot)
    assert list(past.snapshots()) == []
    assert [row["log_id"] for row in bucket.rows("r")[0]] == ["l2", "l3"]


def evaluated(question: str, *log_ids: str) -> dict[str, Any]:
    names = ("log_id", "occurred_at", "folder_id", "agent_id", "conversation_id")
    logs = [{name: example(log_id)[name] for name in names} for log_id in log_ids]
    return {"question": question, "logs": logs, "before": [], "after": [], "rank_before": 1, "gain": 0.0}


def put_evaluation(bucket: Bucket) -> str:
    rows = [evaluated("asked by l1", "l1"), evaluated("asked by two", "l2", "l3")]
    output = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, EVALUATION_SCHEMA), output)
    key = f"{model_prefix('m', 'v-r')}/runs/x/{EVALUATION}"
    bucket.store.put(key, output.getvalue())
    return key


@pytest.mark.parametrize(
    ("subject", "left"),
    [(("log", "l1"), ["asked by two"]), (("log", "l3"), ["asked by l1"]), (("agent", "a"), []), (("folder", "f"), [])],
)
def test_the_evaluation_of_a_model_is_written_anew_without_the_questions_of_erased_logs(
    bucket: Bucket, subject: tuple[str, str], left: list[str]
) -> None:
    key = put_evaluation(bucket)
    # Also where the snapshot has been deleted.
    for name in bucket.store.list("snapshots/"):
        bucket.store.delete(name)
    past = bucket.past(*subject)
    assert past.evaluations() == {key: 2 - len(left)}
    past.erase_evaluation(key)
    table = pq.read_table(io.BytesIO(bucket.store.get(key)))
    assert table.schema == EVALUATION_SCHEMA
    assert table.column("question").to_pylist() == left
    assert past.evaluations() == {}
    assert bucket.past("log", "another").evaluations() == {}


def test_the_command_writes_evaluations_anew_and_names_those_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = Bucket()
    key = put_evaluation(bucket)
    damaged = f"{model_prefix('m', 'v-s')}/runs/x/{EVALUATION}"
    bucket.store.put(damaged, b"damaged")
    monkeypatch.setattr(erased_artifacts, "S3ObjectStore", lambda _: bucket.store)
    monkeypatch.setattr(erased_artifacts, "_ended_requests", lambda _: set())
    monkeypatch.setattr(erased_artifacts, "letters_that_name", lambda *_: [])
    erasure = ErasureRequested(erasure_id="e", occurred_at=NOON, subject="log", subject_id="l1")
    with pytest.raises(typer.Exit):
        erased_artifacts.handle_artifacts(erasure, Settings(), delete=True, yes=True)
    output = capsys.readouterr()
    assert "0 snapshots and 1 evaluations written anew" in output.out
    assert damaged in output.err
    assert bucket.past("log", "l1").evaluations() == {damaged: None}
    assert bucket.store.exists(key)


def test_models_that_were_trained_on_it_or_began_with_such_a_model_are_listed(bucket: Bucket) -> None:
    job = bucket.add("r")
    past = bucket.past("log", "l1")
    snapshots = list(past.snapshots())
    bucket.add("child", f"{job.output_uri}/runs/x", published=False)
    bucket.add("grandchild", bucket.add("child", f"{job.output_uri}/runs/x").output_uri)
    bucket.add("stranger", f"{job.output_uri}-other")
    latest = latest_key(bucket.store.key(job.output_uri))
    bucket.store.put(latest, b'{"version": "v-grandchild"}')
    found = {model.job.version: (model.published, model.is_newest) for model in past.models(snapshots)}
    assert found == {"v-r": (True, False), "v-child": (True, False), "v-grandchild": (True, True)}


def test_models_that_started_from_such_a_version_are_listed(bucket: Bucket) -> None:
    snapshots = list(bucket.past("log", "l1").snapshots())
    bucket.store.delete(snapshot_manifest_key("m", "r"))
    for request_id, parent in (("child", "v-r"), ("grandchild", "v-child"), ("stranger", "v-other"), ("base", None)):
        job = bucket.add(request_id)
        training = TrainingKnobs(start="base" if parent is None else "incumbent")
        request = job.request.model_copy(update={"training": training})
        changed = job.model_copy(update={"request": request, "snapshot_uri": "s3://foldtune/snapshots/none.json"})
        bucket.store.put(job_key("m", request_id), changed.encode())
        ready = {"ready": {"parent_version": parent} if parent else {}}
        bucket.store.put(manifest_key(bucket.store.key(job.output_uri)), json.dumps(ready).encode())
    found = {model.job.version for model in bucket.past("log", "l1").models(snapshots)}
    assert found == {"v-r", "v-child", "v-grandchild"}
