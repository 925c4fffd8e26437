"""What was made before an erasure and still has its subject: snapshots, with their checkpoints and models.

Snapshots of requests that have ended, and the evaluations of models, are written anew without it. Models cannot be, and
are listed.
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from foldtune.events import SnapshotFile, SnapshotManifest, TrainingJob
from foldtune.object_keys import EVALUATION, job_key, latest_key, manifest_key, request_segment
from foldtune.object_store import ObjectStore
from streams.training_sets.erasures import Erasures
from streams.training_sets.state_events import ChatLog, DocumentUpserted, RetrievedPassage, StateEvent, StateRecord

_SNAPSHOTS, _CHECKPOINTS, _JOBS, _MODELS = "snapshots/", "checkpoints/", "jobs/", "models/"
# Documents have no time in a snapshot: whenever they were published, they count as covered.
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

Request = tuple[str, str]
Row = dict[str, Any]


@dataclass
class AffectedSnapshot:
    """A request's snapshot that has what is to be erased."""

    segment: str
    # By key: of some requests there are two, and none of an export that was given up.
    manifests: dict[str, SnapshotManifest]
    # Whether its request has ended: nothing reads it any more.
    ended: bool
    # By key, the number of rows that are to be changed or left out.
    files: dict[str, int] = field(default_factory=dict)
    # Files that may have it; whoever repairs or deletes them decides.
    unreadable: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)

    @property
    def request(self) -> str:
        """Model and request id, or the part of the key that is made of them."""
        manifest = next(iter(self.manifests.values()), None)
        return f"{manifest.model}/{manifest.request_id}" if manifest else self.segment


@dataclass(frozen=True)
class AffectedModel:
    """A model that was trained on it, or on top of one that was."""

    job: TrainingJob
    published: bool
    is_newest: bool


class PastArtifacts:
    """Searches the bucket."""

    def __init__(self, store: ObjectStore, erasures: Erasures, ended: Collection[Request]) -> None:
        """``ended`` are the model and id of each request that has ended."""
        self._store = store
        self._erasures = erasures
        self._ended = {request_segment(*request) for request in ended}

    def snapshots(self) -> Iterator[AffectedSnapshot]:
        """All that have it."""
        by_segment: dict[str, list[str]] = defaultdict(list)
        for key in self._store.list(_SNAPSHOTS):
            by_segment[key.split("/")[1]].append(key)
        for segment, keys in by_segment.items():
            counts = {key: self._count(key) for key in keys if key.endswith(".parquet")}
            files = {key: count for key, count in counts.items() if count}
            unreadable = [key for key, count in counts.items() if count is None]
            if not (files or unreadable):
                continue
            manifests = {key: manifest for key in keys if key.endswith(".json") and (manifest := self._manifest(key))}
            checkpoints = self._store.list(f"{_CHECKPOINTS}{segment}/")
            ended = segment in self._ended or self._is_trained(segment)
            yield AffectedSnapshot(segment, manifests, ended, files, unreadable, checkpoints)

    def erase(self, snapshot: AffectedSnapshot) -> None:
        """Write a snapshot anew without it, and delete its checkpoints. Cut short, it can be repeated."""
        # 1. The new files, named by their digests.
        # 2. The manifests and the jobs that name these, so that a restoration from them goes on to work.
        # 3. Delete the old files.
        new: dict[str, SnapshotFile] = {}
        for key in snapshot.files:
            if (left := self._left_of(key)) is not None:
                new[self._store.uri(key)] = self._write(key, left[0])
        for key, manifest in snapshot.manifests.items():
            self._replace_manifest(key, manifest, new)
        for key in (*snapshot.files, *snapshot.checkpoints):
            if key not in {self._store.key(file.uri) for file in new.values()}:
                self._store.delete(key)

    def evaluations(self) -> dict[str, int | None]:
        """The models' evaluations that have it, by key: how many questions, None for one that cannot be read."""
        keys = [key for key in self._store.list(_MODELS) if key.endswith(f"/{EVALUATION}")]
        counts = {key: self._count(key) for key in keys}
        return {key: count for key, count in counts.items() if count != 0}

    def erase_evaluation(self, key: str) -> None:
        """Write an evaluation anew without it: no manifest names its digest."""
        if (left := self._left_of(key)) is not None:
            self._store.put(key, _parquet(left[0]))

    def models(self, snapshots: Collection[AffectedSnapshot]) -> list[AffectedModel]:
        """The models that were trained on snapshots, and those that began with such a model."""
        manifests = {self._store.uri(key) for snapshot in snapshots for key in snapshot.manifests}
        jobs = self._jobs()
        found: list[TrainingJob] = []
        while new := [
            job
            for job in jobs
            if job not in found
            and (
                job.snapshot_uri in manifests
                or any(f"{job.base_model.uri}/".startswith(f"{parent.output_uri}/") for parent in found)
                or self._started_from(job) in {(parent.request.model, parent.version) for parent in found}
            )
        ]:
            found += new
        return [self._model(job) for job in found]

    def trainings_without_snapshot(self) -> int:
        """How many had a snapshot that is not stored any more: what they were trained on cannot be told."""
        stored = {self._store.uri(key) for key in self._store.list(_SNAPSHOTS)}
        return sum(job.snapshot_uri not in stored for job in self._jobs())

    def _jobs(self) -> list[TrainingJob]:
        return [job for key in self._store.list(_JOBS) if key.endswith("/job.json") and (job := self._job(key))]

    def _is_trained(self, segment: str) -> bool:
        """Whether a request's model is published: its status need not say so, where it left a training to others."""
        job = self._job(f"{_JOBS}{segment}/job.json")
        return job is not None and self._store.exists(manifest_key(self._store.key(job.output_uri)))

    def _started_from(self, job: TrainingJob) -> tuple[str, str] | None:
        """Model and version of the incumbent that a published training started from."""
        if job.request.training.start == "base":
            return None
        manifest = self._store.find(manifest_key(self._store.key(job.output_uri)))
        try:
            return job.request.model, str(json.loads(manifest or b"")["ready"]["parent_version"])
        except (ValueError, LookupError, TypeError):
            return None

    def _model(self, job: TrainingJob) -> AffectedModel:
        prefix = self._store.key(job.output_uri)
        latest = self._store.find(latest_key(prefix))
        newest = json.loads(latest).get("version") if latest else None
        return AffectedModel(job, self._store.exists(manifest_key(prefix)), newest == job.version)

    def _count(self, key: str) -> int | None:
        left = self._left_of(key)
        return None if left is None else left[1]

    def _left_of(self, key: str) -> tuple[pa.Table, int] | None:
        """``_erased`` of a file; ``None`` where it cannot be read, or is none of ours."""
        content = self._store.get(key)
        try:
            table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
            return _erased(table, self._erasures)
        # Most damage is OSError to Arrow, some comes to light in a text; columns may be lacking, or of other types.
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def _write(self, key: str, table: pa.Table) -> SnapshotFile:
        content = _parquet(table)
        sha256 = hashlib.sha256(content).hexdigest()
        new = f"{key.rpartition('-')[0]}-{sha256[:16]}.parquet"
        self._store.put(new, content)
        return SnapshotFile(uri=self._store.uri(new), sha256=sha256, rows=table.num_rows)

    def _replace_manifest(self, key: str, manifest: SnapshotManifest, new: dict[str, SnapshotFile]) -> None:
        parts = tuple(
            part.model_copy(
                update={
                    kind: new.get(file.uri, file)
                    for kind in ("examples", "documents", "other_examples", "other_documents")
                    if (file := getattr(part, kind))
                }
            )
            for part in manifest.parts
        )
        content = manifest.model_copy(update={"parts": parts}).encode()
        self._store.put(key, content)
        name = job_key(manifest.model, manifest.request_id)
        job = self._job(name)
        if job and job.snapshot_uri == self._store.uri(key):
            digest = hashlib.sha256(content).hexdigest()
            self._store.put(name, job.model_copy(update={"snapshot_sha256": digest}).encode())

    def _manifest(self, key: str) -> SnapshotManifest | None:
        try:
            return SnapshotManifest.model_validate_json(self._store.get(key))
        except ValidationError:
            return None

    def _job(self, key: str) -> TrainingJob | None:
        try:
            return TrainingJob.model_validate_json(self._store.find(key) or b"")
        except ValidationError:
            return None


def _parquet(table: pa.Table) -> bytes:
    """A row group for each folder, as a worker writes them; one of what has no folders."""
    output = io.BytesIO()
    with pq.ParquetWriter(output, table.schema, compression="zstd") as writer:
        for _, rows in groupby(table.to_pylist(), key=lambda row: row.get("folder_id")):
            writer.write_table(pa.Table.from_pylist(list(rows), schema=table.schema))
    return output.getvalue()


def _erased(table: pa.Table, erasures: Erasures) -> tuple[pa.Table, int]:
    """A table without what is erased, and how many of its rows that changes."""
    names = table.schema.names
    apply = _erased_answer if "logs" in names else _erased_example if "question" in names else _erased_document
    rows, changed = [], 0
    for row in table.to_pylist():
        remaining = apply(row, erasures)
        changed += remaining is not row
        if remaining is not None:
            rows.append(remaining)
    return pa.Table.from_pylist(rows, schema=table.schema), changed


def _erased_example(row: Row, erasures: Erasures) -> Row | None:
    passages = [*([row["positive"]] if row["positive"] else []), *row["negatives"]]
    log = ChatLog(
        log_id=row["log_id"],
        occurred_at=row["occurred_at"],
        agent_id=row["agent_id"],
        question=row["question"],
        folder_id=row["folder_id"],
        conversation_id=row["conversation_id"],
        retrieved=tuple(RetrievedPassage(**passage, rank=rank) for rank, passage in enumerate(passages, start=1)),
    )
    remaining = _applied(log, erasures)
    if remaining is log:
        return row
    if not isinstance(remaining, ChatLog):
        return None
    texts = [passage | {"text": kept.text} for passage, kept in zip(passages, remaining.retrieved, strict=True)]
    positive = texts.pop(0) if row["positive"] else None
    return row | {"positive": positive, "negatives": texts}


def _erased_answer(row: Row, erasures: Erasures) -> Row | None:
    """A question goes with any of the logs that asked it: whose words it has, nobody can tell."""
    logs = (ChatLog(**log, question=row["question"]) for log in row["logs"])
    return row if all(_applied(log, erasures) is log for log in logs) else None


def _erased_document(row: Row, erasures: Erasures) -> Row | None:
    document = DocumentUpserted(row["document_id"], row["folder_id"], _LONG_AGO, row["text"], row["title"])
    return row if _applied(document, erasures) is document else None


def _applied(event: StateEvent, erasures: Erasures) -> StateEvent:
    return erasures.apply(StateRecord(0, 0, event, 0)).event
