"""Brings an announced model to a folder, whole and verified or not at all."""

import hashlib
import re
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError

from foldtune.errors import ModelFileError, ObjectMissingError
from foldtune.events import ManifestFile, ModelManifest, ModelReady
from foldtune.object_keys import key_segment
from foldtune.object_store import ObjectStore

MANIFEST = "manifest.json"
CURRENT = "current"

# The version becomes a folder's name beside the link.
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def fetch_model(ready: ModelReady, store: ObjectStore, target_dir: Path) -> Path:
    """Download a model to ``target_dir/MODEL/VERSION`` and point ``target_dir/MODEL/current`` to it.

    ``MODEL`` is the model's name with a digest of it, as ``key_segment`` makes it.

    A reader of either never sees half a model. A version that is there already is only pointed to.

    Raises:
        ModelFileError: manifest or file has another digest or size than announced, or is missing; nothing has changed.
    """
    if not _VERSION.fullmatch(ready.version) or ready.version == CURRENT:
        raise ModelFileError(f"version {ready.version!r} cannot name a folder")
    folder = target_dir / key_segment(ready.model)
    version = folder / ready.version
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_there(version, ready):
        _download(ready, store, version)
    _point(folder / CURRENT, ready.version)
    return version


def _is_there(version: Path, ready: ModelReady) -> bool:
    """Whether the folder holds the announced version: the rename put it there whole."""
    if not version.exists():
        return False
    manifest = version / MANIFEST
    if not manifest.is_file() or _digest(manifest) != ready.manifest_sha256:
        raise ModelFileError(f"{version} holds something else")
    return True


def _download(ready: ModelReady, store: ObjectStore, version: Path) -> None:
    prefix = store.key(ready.model_uri).rstrip("/")
    with tempfile.TemporaryDirectory(dir=version.parent, prefix=".incoming-") as parent:
        # Made within, since a folder of tempfile's own is closed to all other users.
        incoming = Path(parent) / "model"
        incoming.mkdir()
        try:
            manifest = _manifest(store.get(f"{prefix}/{MANIFEST}"), ready)
            for file in manifest.files:
                _fetch(store, f"{prefix}/{file.path}", incoming / file.path, file)
            store.get_file(f"{prefix}/{MANIFEST}", incoming / MANIFEST)
        except ObjectMissingError as error:
            raise ModelFileError(error) from error
        if _digest(incoming / MANIFEST) != ready.manifest_sha256:
            raise ModelFileError(f"{MANIFEST} changed while it was read")
        try:
            incoming.rename(version)
        except OSError:
            # Another deployer of the same folder was first.
            if not _is_there(version, ready):
                raise


def _manifest(content: bytes, ready: ModelReady) -> ModelManifest:
    found = hashlib.sha256(content).hexdigest()
    if found != ready.manifest_sha256:
        raise ModelFileError(f"{MANIFEST} has SHA-256 {found}, announced was {ready.manifest_sha256}")
    try:
        return ModelManifest.model_validate_json(content)
    except ValidationError as error:
        raise ModelFileError(f"{MANIFEST}: {error}") from error


def _fetch(store: ObjectStore, key: str, path: Path, file: ManifestFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store.get_file(key, path)
    if (size := path.stat().st_size) != file.bytes:
        raise ModelFileError(f"{file.path} has {size} bytes, announced were {file.bytes}")
    if (digest := _digest(path)) != file.sha256:
        raise ModelFileError(f"{file.path} has SHA-256 {digest}, announced was {file.sha256}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _point(link: Path, version: str) -> None:
    """Switch the link in one step."""
    parent = Path(tempfile.mkdtemp(dir=link.parent, prefix=".link-"))
    try:
        new = parent / CURRENT
        # Relative, so that the target folder may be mounted elsewhere.
        new.symlink_to(version)
        new.replace(link)
    finally:
        shutil.rmtree(parent)
