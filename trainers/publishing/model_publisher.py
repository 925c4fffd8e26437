"""Publishes a model: its files, then the manifest that makes them count, then the completion event."""

import hashlib
import json
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict

from foldtune.events import ManifestFile, ModelManifest, ModelReady, Sha256, State, TrainingJob
from foldtune.object_store import ObjectStore
from trainers.publishing.reporting import Reporter

log = structlog.get_logger()

MANIFEST = "manifest.json"
LATEST = "latest.json"


class ArtifactManifest(ModelManifest):
    """What a model consists of. It is written last: a prefix without it is no model.

    ``ready`` is the event as it is published, but for the digest of this very manifest; a trainer that comes again
    publishes it from here.
    """

    ready: dict[str, Any]


class LatestModel(BaseModel):
    """The newest promoted version of a model: ``latest.json`` beside the versions' folders."""

    model_config = ConfigDict(extra="ignore")

    version: str
    model_uri: str
    manifest_sha256: Sha256


def publish_model(folder: Path, ready: ModelReady, job: TrainingJob, store: ObjectStore, reporter: Reporter) -> None:
    """Publish the files of ``folder`` as the model of ``job``; ``ready`` lacks only the manifest's digest."""
    prefix = store.key(job.output_uri.rstrip("/"))
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    # 1. The files. Until the manifest is there nobody reads them, and a second trainer may write over them.
    for path in paths:
        store.put_file(f"{prefix}/{path.relative_to(folder).as_posix()}", path)
    # 2. The manifest, with the digest of each file: the moment from which the model exists. Of two trainers that
    #    come here at once, one is first, and both go on with what it wrote.
    manifest = ArtifactManifest(
        files=tuple(_file(path, folder) for path in paths),
        ready=ready.model_dump(mode="json", exclude={"manifest_sha256"}),
    )
    store.put_if_absent(f"{prefix}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
    publish_again(job, store, reporter)


def published(job: TrainingJob, store: ObjectStore) -> bool:
    """Whether the job's model exists already."""
    key = f"{store.key(job.output_uri.rstrip('/'))}/{MANIFEST}"
    return key in store.list(key)


def publish_again(job: TrainingJob, store: ObjectStore, reporter: Reporter) -> None:
    """Announce the model that the manifest describes. Any number of times: readers know it by its version."""
    prefix = store.key(job.output_uri.rstrip("/"))
    content = store.get(f"{prefix}/{MANIFEST}")
    manifest = ArtifactManifest.model_validate_json(content)
    digest = hashlib.sha256(content).hexdigest()
    ready = ModelReady.model_validate_json(json.dumps({**manifest.ready, "manifest_sha256": digest}))
    if ready.gate.promote:
        # 3. The pointer that the next training compares with: only ever forward.
        _point_to(ready, prefix, store)
        # 4. The completion event. A model that failed the gate is kept, and not announced as ready.
        reporter.model_ready(ready)
    # 5. The request has ended.
    reporter.state(State.COMPLETED, model_uri=ready.model_uri, promoted=ready.gate.promote, reasons=ready.gate.reasons)


def latest_model(job: TrainingJob, store: ObjectStore) -> LatestModel | None:
    """The newest promoted version of the job's model before this one, if there is any."""
    key = _latest_key(store.key(job.output_uri.rstrip("/")))
    if key not in store.list(key):
        return None
    return LatestModel.model_validate_json(store.get(key))


def _point_to(ready: ModelReady, prefix: str, store: ObjectStore) -> None:
    key = _latest_key(prefix)
    if key in store.list(key):
        present = LatestModel.model_validate_json(store.get(key))
        if present.version >= ready.version:
            return
    latest = LatestModel(version=ready.version, model_uri=ready.model_uri, manifest_sha256=ready.manifest_sha256)
    store.put(key, latest.model_dump_json().encode())


def _latest_key(prefix: str) -> str:
    return f"{prefix.rpartition('/')[0]}/{LATEST}"


def _file(path: Path, folder: Path) -> ManifestFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ManifestFile(path=path.relative_to(folder).as_posix(), sha256=digest, bytes=path.stat().st_size)
