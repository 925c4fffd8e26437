"""Downloads a model to a folder, verified and atomically."""

import hashlib
import re
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError

from foldtune.digests import file_sha256
from foldtune.errors import ModelFileError, ObjectMissingError
from foldtune.events import ManifestFile, ModelManifest, ModelReady
from foldtune.object_keys import MANIFEST, key_segment, manifest_key
from foldtune.object_store import ObjectStore

CURRENT = "current"

# The version becomes a folder's name beside the link.
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def fetch_model(ready: ModelReady, store: ObjectStore, target_dir: Path) -> Path:
    """Download a model to ``target_dir/MODEL/VERSION`` and link ``target_dir/MODEL/current`` to it.

    ``MODEL`` is the ``key_segment`` of the model's name. Readers of either path never see a partial model. A version
    that has been downloaded before is only linked.

    Raises:
        ModelFileError: a digest or a size differs from the event or the manifest, or a file is missing; the folder is
            unchanged.
    """
    if not _VERSION.fullmatch(ready.version) or ready.version == CURRENT:
        raise ModelFileError(f"version {ready.version!r} is not a valid folder name")
    folder = target_dir / key_segment(ready.model)
    version = folder / ready.version
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_downloaded(version, ready):
        _download(ready, store, version)
    _link_current(folder / CURRENT, ready.version)
    return version


def _is_downloaded(version: Path, ready: ModelReady) -> bool:
    """Whether the folder is the version of the event; it is complete, since it was renamed into place."""
    if not version.exists():
        return False
    manifest = version / MANIFEST
    if not manifest.is_file() or file_sha256(manifest) != ready.manifest_sha256:
        raise ModelFileError(f"{version} is a different model")
    return True


def download_files(model_uri: str, manifest_sha256: str, store: ObjectStore, folder: Path) -> None:
    """Download the files of a model and its manifest to ``folder``, each verified.

    Raises:
        ModelFileError: a file is missing, or differs from the manifest; or the manifest from its digest.
        ValueError: the model is in another bucket.
    """
    prefix = store.key(model_uri).rstrip("/")
    try:
        content = store.get(manifest_key(prefix))
        for file in _verified_manifest(content, manifest_sha256).files:
            _download_file(store, f"{prefix}/{file.path}", folder / file.path, file)
    except ObjectMissingError as error:
        raise ModelFileError(error) from error
    (folder / MANIFEST).write_bytes(content)


def _download(ready: ModelReady, store: ObjectStore, version: Path) -> None:
    with tempfile.TemporaryDirectory(dir=version.parent, prefix=".incoming-") as parent:
        # A folder inside, since tempfile's own is not readable for other users.
        incoming = Path(parent) / "model"
        incoming.mkdir()
        download_files(ready.model_uri, ready.manifest_sha256, store, incoming)
        try:
            incoming.rename(version)
        except OSError:
            # A concurrent deployer of the same folder was faster.
            if not _is_downloaded(version, ready):
                raise


def _verified_manifest(content: bytes, sha256: str) -> ModelManifest:
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ModelFileError(f"{MANIFEST} has SHA-256 {digest}, expected {sha256}")
    try:
        return ModelManifest.model_validate_json(content)
    except ValidationError as error:
        raise ModelFileError(f"{MANIFEST}: {error}") from error


def _download_file(store: ObjectStore, key: str, path: Path, file: ManifestFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store.get_file(key, path)
    if (size := path.stat().st_size) != file.bytes:
        raise ModelFileError(f"{file.path} has {size} bytes, expected {file.bytes}")
    if (digest := file_sha256(path)) != file.sha256:
        raise ModelFileError(f"{file.path} has SHA-256 {digest}, expected {file.sha256}")


def _link_current(link: Path, version: str) -> None:
    """Replace the link atomically."""
    parent = Path(tempfile.mkdtemp(dir=link.parent, prefix=".link-"))
    try:
        new = parent / CURRENT
        # Relative, so that the target folder can be mounted elsewhere.
        new.symlink_to(version)
        new.replace(link)
    finally:
        shutil.rmtree(parent)
