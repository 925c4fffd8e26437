"""Publishes a model: its files, then the manifest as the commit, then the completion event."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from foldtune.digests import file_sha256
from foldtune.events import ManifestFile, ModelManifest, ModelReady, Sha256, State, TrainingJob
from foldtune.object_keys import latest_key, manifest_key
from foldtune.object_store import ObjectStore
from trainers.publishing.reporting import Reporter


class ArtifactManifest(ModelManifest):
    """The files of a model with their digests. Written last: without it, a prefix holds no model.

    ``ready`` is the ``ModelReady`` event without this manifest's own digest, from which a restarted job publishes it
    again.
    """

    ready: dict[str, Any]


class LatestModel(BaseModel):
    """The newest promoted version of a model: ``latest.json`` beside the versions' folders."""

    model_config = ConfigDict(extra="ignore")

    version: str
    model_uri: str
    manifest_sha256: Sha256


def publish_model(folder: Path, ready: ModelReady, job: TrainingJob, store: ObjectStore, reporter: Reporter) -> None:
    """Publish the files of ``folder`` as the model of ``job``; in ``ready``, the manifest's digest is a placeholder."""
    prefix = store.key(job.output_uri.rstrip("/"))
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    # 1. The files. Until the manifest exists they are not read, and a second trainer may overwrite them.
    for path in paths:
        store.put_file(f"{prefix}/{path.relative_to(folder).as_posix()}", path)
    # 2. The manifest, with the digest of each file: the commit. Of two concurrent trainers one creates it, and both
    #    continue with that one.
    manifest = ArtifactManifest(
        files=tuple(_file(path, folder) for path in paths),
        ready=ready.model_dump(mode="json", exclude={"manifest_sha256"}),
    )
    store.put_if_absent(manifest_key(prefix), manifest.model_dump_json(indent=2).encode())
    announce_model(job, store, reporter)


def is_published(job: TrainingJob, store: ObjectStore) -> bool:
    """Whether the job's model exists already, which its manifest says."""
    return store.exists(manifest_key(store.key(job.output_uri.rstrip("/"))))


def announce_model(job: TrainingJob, store: ObjectStore, reporter: Reporter) -> None:
    """Publish the events of the model in the manifest. Idempotent: consumers deduplicate by version."""
    prefix = store.key(job.output_uri.rstrip("/"))
    content = store.get(manifest_key(prefix))
    manifest = ArtifactManifest.model_validate_json(content)
    digest = hashlib.sha256(content).hexdigest()
    ready = ModelReady.model_validate_json(json.dumps({**manifest.ready, "manifest_sha256": digest}))
    if ready.gate.promote:
        # 3. The pointer to the baseline of the next training; it never moves back.
        _advance_latest(ready, prefix, store)
        # 4. The completion event. A model that failed the gate is stored, but not announced.
        reporter.publish_model_ready(ready)
    # 5. The request's final state.
    gate = ready.gate
    reporter.publish_state(State.COMPLETED, model_uri=ready.model_uri, promoted=gate.promote, reasons=gate.reasons)


def latest_model(job: TrainingJob, store: ObjectStore) -> LatestModel | None:
    """The newest promoted version of the job's model, if there is one."""
    return _latest_model(store.key(job.output_uri.rstrip("/")), store)


def _advance_latest(ready: ModelReady, prefix: str, store: ObjectStore) -> None:
    current = _latest_model(prefix, store)
    if current and current.version >= ready.version:
        return
    latest = LatestModel(version=ready.version, model_uri=ready.model_uri, manifest_sha256=ready.manifest_sha256)
    store.put(latest_key(prefix), latest.model_dump_json().encode())


def _latest_model(prefix: str, store: ObjectStore) -> LatestModel | None:
    content = store.find(latest_key(prefix))
    return LatestModel.model_validate_json(content) if content is not None else None


def _file(path: Path, folder: Path) -> ManifestFile:
    size = path.stat().st_size
    return ManifestFile(path=path.relative_to(folder).as_posix(), sha256=file_sha256(path), bytes=size)
