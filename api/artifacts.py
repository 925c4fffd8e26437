"""What the object store has of a model version: its manifest, its files, its held-out questions, and a job's log."""

import hashlib
import io
import json
import re
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from api.problems import ProblemError, unavailable
from foldtune.errors import InfrastructureError, ObjectMissingError
from foldtune.events import ManifestFile, ModelManifest, ModelReady
from foldtune.object_keys import EVALUATION, attempt_key, attempts_prefix, manifest_key, model_prefix
from foldtune.object_store import ObjectStore

LINK_SECONDS = 300
# Of a manifest, a card, metrics, or rows: they are held in memory. Larger ones are of no training.
_MAX_BYTES = 32 << 20
# Of a log: what is shown, and what is read for it. A line every ten seconds makes the latter in four days.
_LOG_END, _LOG_BYTES = 64 << 10, 8 << 20
_LOG = re.compile(r"attempt-(\d+)\.log$")
_ROWS: TypeAdapter[Any] = TypeAdapter(list[dict[str, Any]])


class Log(NamedTuple):
    """The end of an attempt's log, and the size of all of it."""

    attempt: int
    bytes: int
    text: str


def newest_log(store: ObjectStore, model: str, request_id: str) -> Log | None:
    """The log of a job's newest attempt that has one here. Raises ``ProblemError`` (409, 503)."""
    try:
        keys = store.list(attempts_prefix(model, request_id))
        attempt = max((int(found[1]) for found in map(_LOG.search, keys) if found), default=None)
        if attempt is None:
            return None
        key = attempt_key(model, request_id, attempt, "log")
        content, size = store.get_start(key, _LOG_BYTES)
    except ObjectMissingError:
        return None
    except InfrastructureError as error:
        raise unavailable() from error
    if size > _LOG_BYTES:
        raise ProblemError(HTTPStatus.CONFLICT, f"{store.uri(key)} has {size} bytes, at most {_LOG_BYTES} are read")
    end = content[-_LOG_END:]
    if len(end) < size:
        # Perhaps in the middle of a line, or of a character.
        end = end.partition(b"\n")[2] or end
    return Log(attempt, size, end.decode(errors="replace"))


class _Manifest(ModelManifest):
    ready: dict[str, Any]


# What comes first.
Order = Literal["lost", "gained"]


class VersionFiles:
    """The files of one version. Every method waits for the object store; raises ``ProblemError`` (404, 503)."""

    def __init__(self, store: ObjectStore, model: str, version: str) -> None:
        self._store = store
        self._name = f"version {version!r} of model {model!r}"
        content = self._get(manifest_key(model_prefix(model, version)))
        try:
            manifest = _Manifest.model_validate_json(content)
            digest = hashlib.sha256(content).hexdigest()
            self.ready = ModelReady.model_validate_json(json.dumps({**manifest.ready, "manifest_sha256": digest}))
            self._prefix = store.key(self.ready.model_uri)
        except (ValidationError, ValueError) as error:
            raise self._invalid_manifest() from error
        # Whoever trains one model may write its manifest, and must not lead its readers to what is of others.
        if not self._prefix.startswith(f"{model_prefix(model, version)}/"):
            raise self._invalid_manifest()
        self.files: tuple[ManifestFile, ...] = manifest.files

    def read(self, path: str) -> bytes:
        """A file of the manifest."""
        if path not in {file.path for file in self.files}:
            raise self._missing(path)
        return self._get(f"{self._prefix}/{path}")

    def link(self, path: str) -> str:
        """An address at which a file of the manifest can be fetched for ``LINK_SECONDS``, without credentials."""
        if path not in {file.path for file in self.files}:
            raise self._missing(path)
        try:
            return self._store.link(f"{self._prefix}/{path}", LINK_SECONDS)
        except InfrastructureError as error:
            raise unavailable() from error

    def evaluation(self, first: int, count: int, order: Order = "lost") -> tuple[list[dict[str, Any]], int]:
        """Rows of the held-out questions, the greatest loss or gain first, and how many there are."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415  too large for functions, which do not read them

        content = self._get(f"{self._prefix}/{EVALUATION}")
        try:
            table = pq.read_table(io.BytesIO(content)).sort_by(
                [("gain", "ascending" if order == "lost" else "descending")]
            )
            # Some columns are nothing that JSON has.
            rows: list[dict[str, Any]] = _ROWS.dump_python(
                table.slice(min(first, table.num_rows), count).to_pylist(), mode="json"
            )
        except (pa.ArrowException, ValueError, KeyError, OSError) as error:
            raise ProblemError(HTTPStatus.CONFLICT, f"{EVALUATION} of {self._name} is not valid") from error
        return rows, table.num_rows

    def _get(self, key: str) -> bytes:
        try:
            content, size = self._store.get_start(key, _MAX_BYTES)
        except ObjectMissingError as error:
            raise self._missing(key.rpartition("/")[2]) from error
        except InfrastructureError as error:
            raise unavailable() from error
        if size > _MAX_BYTES:
            name = key.rpartition("/")[2]
            raise ProblemError(HTTPStatus.CONFLICT, f"{name} of {self._name} has {size} bytes, at most {_MAX_BYTES}")
        return content

    def _invalid_manifest(self) -> ProblemError:
        return ProblemError(HTTPStatus.CONFLICT, f"the manifest of {self._name} is not valid")

    def _missing(self, path: str) -> ProblemError:
        return ProblemError(HTTPStatus.NOT_FOUND, f"{self._name} has no {path}")
