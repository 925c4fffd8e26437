"""Publishes a model: its files, then the manifest as the commit, then the completion event."""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from foldtune.digests import file_sha256
from foldtune.errors import ObjectStoreError
from foldtune.events import ManifestFile, ModelManifest, ModelReady, Sha256, State, TrainingJob
from foldtune.object_keys import FOR_OPERATORS, latest_key, manifest_key, run_prefix
from foldtune.object_store import ObjectStore
from trainers.errors import ImpossibleJobError, InfrastructureFailedError
from trainers.publishing.reporting import Reporter

log = structlog.get_logger()

# Each attempt fails because another trainer of the model has advanced it meanwhile: these are few.
ADVANCE_ATTEMPTS = 10


class ArtifactManifest(ModelManifest):
    """The files of a model with their digests, below ``ready.model_uri``. Written last: without it, there is no model.

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
    """Publish the files of ``folder`` as the model of ``job``; in ``ready``, the manifest's digest is a placeholder.

    A second trainer of the same job, which may not know that it is one, changes nothing of what the first published.
    """
    prefix = _prefix(job, store)
    mine = run_prefix(prefix, uuid.uuid4().hex[:16])
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    deployed = [path for path in paths if path.name not in FOR_OPERATORS]
    # 1. The files and their manifest, below a prefix that no other trainer has.
    for path in paths:
        store.put_file(f"{mine}/{path.relative_to(folder).as_posix()}", path)
    announced = ready.model_copy(update={"model_uri": store.uri(mine)})
    manifest = ArtifactManifest(
        # Whoever serves a model need not see users' questions, which an erasure rewrites, nor names of other folders.
        files=tuple(_file(path, folder) for path in deployed),
        ready=announced.model_dump(mode="json", exclude={"manifest_sha256"}),
    )
    content = manifest.model_dump_json(indent=2).encode()
    store.put(manifest_key(mine), content)
    # 2. The same manifest at the model's prefix: the commit. Of several trainers one creates it, and all continue with
    #    that one.
    store.put_if_absent(manifest_key(prefix), content)
    announce_model(job, store, reporter)


def is_published(job: TrainingJob, store: ObjectStore) -> bool:
    """Whether the job's model exists already, which its manifest says."""
    return store.exists(manifest_key(_prefix(job, store)))


def announce_model(job: TrainingJob, store: ObjectStore, reporter: Reporter) -> None:
    """Publish the events of the model in the manifest. Idempotent: consumers deduplicate by version.

    Raises:
        ImpossibleJobError: the manifest is malformed, so nobody could use the model.
    """
    prefix = _prefix(job, store)
    content = store.get(manifest_key(prefix))
    digest = hashlib.sha256(content).hexdigest()
    try:
        manifest = ArtifactManifest.model_validate_json(content)
        ready = ModelReady.model_validate_json(json.dumps({**manifest.ready, "manifest_sha256": digest}))
    except ValidationError as error:
        raise ImpossibleJobError(f"{store.uri(manifest_key(prefix))}: {error.error_count()} fields invalid") from error
    if ready.gate.promote:
        # 3. The pointer to the baseline of the next training; it never moves back.
        _advance_latest(ready, prefix, store)
        # 4. The completion event. A model that failed the gate is stored, but not announced.
        reporter.publish_model_ready(ready)
    # 5. The request's final state.
    gate = ready.gate
    reporter.publish_state(State.COMPLETED, model_uri=ready.model_uri, promoted=gate.promote, reasons=gate.reasons)
    _delete_other_runs(ready, prefix, store)


def latest_model(job: TrainingJob, store: ObjectStore) -> LatestModel | None:
    """The newest promoted version of the job's model, if there is one.

    Raises:
        ValidationError: ``latest.json`` is malformed.
        ImpossibleJobError: it points to another model, or elsewhere.
    """
    key = latest_key(_prefix(job, store))
    if (content := store.find(key)) is None:
        return None
    latest = LatestModel.model_validate_json(content)
    if not store.key(latest.model_uri).startswith(f"{key.rpartition('/')[0]}/"):
        raise ImpossibleJobError(f"{store.uri(key)} points to {latest.model_uri}, which is not of this model")
    return latest


def incumbent_model(job: TrainingJob, store: ObjectStore) -> LatestModel | None:
    """What the job's model is to replace: the newest promoted version that nobody has rejected.

    In the place of a rejected one is the version that it had replaced, which its manifest names. Raises like
    ``latest_model``, and what reading manifests does.
    """
    incumbent = latest_model(job, store)
    while incumbent and incumbent.version in job.rejected_versions:
        incumbent = _replaced_by(incumbent, job, store)
    return incumbent


def _replaced_by(model: LatestModel, job: TrainingJob, store: ObjectStore) -> LatestModel | None:
    manifest = ArtifactManifest.model_validate_json(store.get(manifest_key(store.key(model.model_uri))))
    # Releases up to 0.1 called it the parent.
    version = manifest.ready.get("compared_with") or manifest.ready.get("parent_version")
    # Each replaced an earlier one: a forged manifest must not make a circle, nor lead elsewhere.
    if not isinstance(version, str) or "/" in version or version >= model.version:
        return None
    prefix = f"{_prefix(job, store).rpartition('/')[0]}/{version}"
    content = store.get(manifest_key(prefix))
    uri = ArtifactManifest.model_validate_json(content).ready.get("model_uri")
    if not isinstance(uri, str) or not store.key(uri).startswith(f"{prefix}/"):
        raise ImpossibleJobError(f"{store.uri(manifest_key(prefix))} points to {uri}, which is not of this version")
    return LatestModel(version=version, model_uri=uri, manifest_sha256=hashlib.sha256(content).hexdigest())


def _prefix(job: TrainingJob, store: ObjectStore) -> str:
    return store.key(job.output_uri.rstrip("/"))


def _advance_latest(ready: ModelReady, prefix: str, store: ObjectStore) -> None:
    key = latest_key(prefix)
    latest = LatestModel(version=ready.version, model_uri=ready.model_uri, manifest_sha256=ready.manifest_sha256)
    content = latest.model_dump_json().encode()
    for _ in range(ADVANCE_ATTEMPTS):
        if (found := store.find_with_etag(key)) is None:
            if store.put_if_absent(key, content):
                return
            continue
        current, etag = found
        if _version(current, key) >= ready.version or store.put_if_match(key, content, etag):
            return
    raise InfrastructureFailedError(f"{store.uri(key)} was overwritten {ADVANCE_ATTEMPTS} times meanwhile")


def _version(content: bytes, key: str) -> str:
    """The version in ``latest.json``; older than all if it is malformed."""
    try:
        return LatestModel.model_validate_json(content).version
    except ValidationError as error:
        log.warning("pointer to the latest model malformed, replaced", key=key, error=str(error))
        return ""


def _delete_other_runs(ready: ModelReady, prefix: str, store: ObjectStore) -> None:
    """Delete what runs left that did not publish; since the manifest exists, none of them will."""
    published = f"{store.key(ready.model_uri)}/"
    try:
        for key in store.list(run_prefix(prefix, "")):
            if not key.startswith(published):
                store.delete(key)
    except ObjectStoreError as error:
        log.warning("files of unpublished runs not deleted", prefix=prefix, error=str(error))


def _file(path: Path, folder: Path) -> ManifestFile:
    size = path.stat().st_size
    return ManifestFile(path=path.relative_to(folder).as_posix(), sha256=file_sha256(path), bytes=size)
