"""A training job without a worker and without Kafka: its snapshot as a worker leaves it, and a sink for its events."""

import hashlib
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foldtune.events import (
    FineTuneRequested,
    FineTuneStatus,
    ModelReady,
    ModelReference,
    SnapshotFile,
    SnapshotManifest,
    SnapshotPart,
    TrainingJob,
)
from foldtune.object_store import ObjectStore
from tests.runbooks import NOW
from trainers.model.base_models import packaged_minilm
from trainers.publishing.model_publisher import ArtifactManifest
from trainers.publishing.reporting import EventSink


class RecordingEventSink(EventSink):
    """Records the published events."""

    def __init__(self) -> None:
        self.statuses: list[FineTuneStatus] = []
        self.ready: list[ModelReady] = []

    def publish_status(self, status: FineTuneStatus) -> None:
        self.statuses.append(status)

    def publish_model_ready(self, event: ModelReady) -> None:
        self.ready.append(event)


def put_job(
    store: ObjectStore,
    tables: tuple[pa.Table, pa.Table],
    *,
    version: str = "000001",
    base_model: ModelReference | None = None,
    others: tuple[pa.Table, pa.Table] | None = None,
    **request: Any,
) -> TrainingJob:
    """The job that trains on ``tables``, examples and documents, which are put into ``store``; ``others`` are those of
    folders that its request does not name, ``request`` are parts of its request.
    """
    names = ("examples", "documents", "other_examples", "other_documents")
    files: dict[str, Any] = {}
    for name, table in zip(names, (*tables, *(others or ())), strict=False):
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        store.put(f"snapshots/r/{name}.parquet", buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        uri = store.uri(f"snapshots/r/{name}.parquet")
        files[name] = SnapshotFile(uri=uri, sha256=digest, rows=table.num_rows)
    part = SnapshotPart(
        request_id="r",
        model="m",
        partition=0,
        **files,
        folder_count=1,
        positives=tables[0].num_rows,
    )
    manifest = SnapshotManifest(request_id="r", model="m", created_at=NOW, parts=(part,)).encode()
    store.put("snapshots/r/manifest.json", manifest)
    return TrainingJob(
        request=FineTuneRequested(request_id="r", model="m", requested_at=NOW, **request),
        base_model=base_model or packaged_minilm(),
        snapshot_uri=store.uri("snapshots/r/manifest.json"),
        snapshot_sha256=hashlib.sha256(manifest).hexdigest(),
        output_uri=store.uri(f"models/m/{version}"),
        version=version,
        published_at=NOW,
        max_seconds=600,
    )


def published_prefix(store: ObjectStore, version: str = "000001") -> str:
    """The prefix of the files of a model that ``put_job``'s job has published."""
    manifest = ArtifactManifest.model_validate_json(store.get(f"models/m/{version}/manifest.json"))
    return store.key(manifest.ready["model_uri"])


def artifact(store: ObjectStore, name: str, version: str = "000001") -> bytes:
    """A file of that model."""
    return store.get(f"{published_prefix(store, version)}/{name}")
