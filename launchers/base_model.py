"""Whether the base model of a job can be trained, asked before a machine is paid for.

The trainer checks the same and more, so what cannot be read from here, for want of rights or a network, is left to it.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

import structlog

from foldtune.errors import InfrastructureError, ModelFolderError
from foldtune.events import ModelReference
from foldtune.model_folder import Read, check_model_folder
from foldtune.model_weights import ReadStart, check_weights
from foldtune.object_store import ObjectStore

log = structlog.get_logger(__name__)

_HUB_SECONDS = 5.0
# Of a configuration file. The largest that are read here have some kilobytes.
_MAX_BYTES = 1 << 20


def base_model_problem(reference: ModelReference, store: ObjectStore, model_folders: tuple[Path, ...]) -> str | None:
    """Why no training can start from the model, in one sentence; None if nothing is known against it.

    Outside ``model_folders`` (``trainer.model_folders``) no folder of this machine is read, or a requester would learn
    what is there. The trainer refuses it.
    """
    try:
        if files := _files(reference, store, model_folders):
            check_model_folder(files.names, files.read)
            check_weights(*files)
    except ModelFolderError as error:
        return f"{reference.uri}: {', '.join(error.args)}"
    except (InfrastructureError, OSError, ValueError) as error:
        log.warning("base model not checked before its launch", uri=reference.uri, error=str(error))
    return None


class _Files(NamedTuple):
    """The model's file names, and how one is read."""

    names: Collection[str]
    read: Read
    read_start: ReadStart


def _files(reference: ModelReference, store: ObjectStore, model_folders: tuple[Path, ...]) -> _Files | None:
    match reference.uri.partition("://")[0]:
        case "file":
            folder = Path(unquote(urlsplit(reference.uri).path)).resolve()
            allowed = any(folder.is_relative_to(parent.resolve()) for parent in model_folders)
            # It may lie on the trainer's machine only.
            return _local(folder) if allowed and folder.is_dir() else None
        case "s3":
            prefix = store.key(reference.uri.rstrip("/")) + "/"
            names = frozenset(key.removeprefix(prefix) for key in store.list(prefix))
            if not names:
                raise ModelFolderError("there are no files")
            return _Files(
                names,
                lambda name: store.get(prefix + name),
                lambda name, count: store.get_start(prefix + name, count),
            )
        case _ if reference.revision and not os.environ.get("HF_HUB_OFFLINE"):
            return _hub(reference.uri.removeprefix("hf://"), reference.revision)
    return None


def _local(folder: Path) -> _Files:
    def read_start(name: str, count: int) -> tuple[bytes, int]:
        with (folder / name).open("rb") as file:
            return file.read(count), (folder / name).stat().st_size

    names = frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return _Files(names, lambda name: (folder / name).read_bytes(), read_start)


def _hub(name: str, revision: str) -> _Files:
    # The interface that huggingface-hub uses, which launchers do not install; so are the variables.
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    model = f"{quote(name)}/{{}}/{quote(revision, safe='')}"
    try:
        listed: Any = json.loads(_get(f"{endpoint}/api/models/{model.format('revision')}", _MAX_BYTES)[0])
    except HTTPError as error:
        # The hub answers so for private models, too, where a token is needed that only the trainer may have.
        if error.code == 404 and not os.environ.get("HF_TOKEN"):
            raise ModelFolderError(f"the hub has no such model or no revision {revision}") from error
        raise
    names = frozenset(str(file["rfilename"]) for file in listed["siblings"])
    address = f"{endpoint}/{model.format('resolve')}/"
    return _Files(
        names,
        lambda path: _get(address + quote(path), _MAX_BYTES)[0],
        lambda path, count: _get(address + quote(path), count, Range=f"bytes=0-{count - 1}"),
    )


def _get(url: str, count: int, **headers: str) -> tuple[bytes, int]:
    """The first ``count`` bytes of what is there, and its size."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url} is no address of a hub")
    request = Request(url, headers=headers)  # noqa: S310 - checked above
    if token := os.environ.get("HF_TOKEN"):
        # Not to where the hub's weights lie, which it redirects to.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    with urlopen(request, timeout=_HUB_SECONDS) as response:  # noqa: S310 - checked above
        content: bytes = response.read(count)
        size = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length")
    return content, int(size or len(content))
