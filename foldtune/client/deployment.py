"""Downloads models to a folder, verified and atomically, and goes on to newer versions only."""

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from foldtune.digests import file_sha256
from foldtune.errors import FoldtuneError, ModelFileError, ObjectMissingError
from foldtune.events import ManifestFile, ModelManifest, ModelReady
from foldtune.object_keys import MANIFEST, key_segment, manifest_key
from foldtune.object_store import ObjectStore
from foldtune.reasons import explain

CURRENT = "current"
# Beside the link: the newest version that it ever pointed to. An older ``current`` was set by hand, and stays.
_NEWEST = ".newest"
# Seconds between two attempts at a version, doubled up to the second number.
BACKOFF = (1.0, 60.0)

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
    newest = max(ready.version, _newest(folder) or "")
    _replace(folder / _NEWEST, lambda path: path.write_text(newest, encoding="utf-8"))
    # Relative, so that the target folder can be mounted elsewhere.
    _replace(folder / CURRENT, lambda path: path.symlink_to(ready.version))
    return version


def has_been_deployed(ready: ModelReady, target_dir: Path) -> bool:
    """Whether this version or a newer one was ``current`` at some time, and one still is.

    Then an automatic deployment leaves the link alone: the version is older, or an operator has gone back from it.
    """
    folder = target_dir / key_segment(ready.model)
    newest = _newest(folder)
    return newest is not None and newest >= ready.version and (folder / CURRENT).exists()


@dataclass
class _Wanted:
    ready: ModelReady
    due: float
    delay: float = BACKOFF[0]


class Deployer:
    """Deploys the newest version of every model by ``fetch_model``, and again until it succeeds."""

    def __init__(
        self,
        store: ObjectStore,
        target_dir: Path,
        failed: Callable[[ModelReady, Exception], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        rejected: Callable[[ModelReady], bool] = lambda _: False,
    ) -> None:
        """``failed`` is told of each failure; what is ``rejected`` meanwhile is given up."""
        self._store = store
        self._target_dir = target_dir
        self._failed = failed
        self._clock = clock
        self._rejected = rejected
        self._wanted: dict[str, _Wanted] = {}

    def offer(self, ready: ModelReady) -> None:
        """Deploy this version next, unless a newer one is known or has been deployed."""
        wanted = self._wanted.get(ready.model)
        if has_been_deployed(ready, self._target_dir) or (wanted and wanted.ready.version >= ready.version):
            return
        self._wanted[ready.model] = _Wanted(ready, self._clock())

    def deploy_due(self) -> Iterator[Path]:
        """Try each version that is due; the folders of those deployed."""
        for model, wanted in list(self._wanted.items()):
            if self._rejected(wanted.ready):
                del self._wanted[model]
                continue
            if wanted.due > self._clock():
                continue
            try:
                folder = fetch_model(wanted.ready, self._store, self._target_dir)
            except (FoldtuneError, OSError, ValueError) as error:
                self._failed(wanted.ready, error)
                wanted.due = self._clock() + wanted.delay
                wanted.delay = min(2 * wanted.delay, BACKOFF[1])
                continue
            del self._wanted[model]
            yield folder

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to deploy."""
        return not self._wanted


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
        raise ModelFileError(f"{MANIFEST}: {'; '.join(explain(error))}") from error


def _download_file(store: ObjectStore, key: str, path: Path, file: ManifestFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store.get_file(key, path)
    if (size := path.stat().st_size) != file.bytes:
        raise ModelFileError(f"{file.path} has {size} bytes, expected {file.bytes}")
    if (digest := file_sha256(path)) != file.sha256:
        raise ModelFileError(f"{file.path} has SHA-256 {digest}, expected {file.sha256}")


def _newest(folder: Path) -> str | None:
    """The newest version that was ever current; before it was recorded, the one that is."""
    if (record := folder / _NEWEST).is_file():
        return record.read_text(encoding="utf-8")
    return (folder / CURRENT).readlink().name if (folder / CURRENT).is_symlink() else None


def _replace(target: Path, create: Callable[[Path], object]) -> None:
    """Replace a file or link atomically."""
    parent = Path(tempfile.mkdtemp(dir=target.parent, prefix=".link-"))
    try:
        new = parent / target.name
        create(new)
        new.replace(target)
    finally:
        shutil.rmtree(parent)
