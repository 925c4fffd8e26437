"""An object store that repeats what another one did not complete."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from foldtune.errors import ObjectStoreError, ObjectStoreRefusedError
from foldtune.object_store import ObjectStore

log = structlog.get_logger()

# Beyond boto3's own retries, which take seconds: a disturbance of minutes must not cost hours of training.
PATIENCE_SECONDS = 300.0
MAX_WAIT_SECONDS = 15.0

P = ParamSpec("P")
T = TypeVar("T")


class RetryingStore(ObjectStore):
    """Repeats each request for ``PATIENCE_SECONDS``, unless it was refused, or the object does not exist."""

    def __init__(self, store: ObjectStore) -> None:
        self.bucket, self.prefix = store.bucket, store.prefix
        self._store = store

    def put(self, key: str, content: bytes) -> None:
        self._repeat(self._store.put, key, content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        return self._repeat(self._store.put_if_absent, key, content)

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        return self._repeat(self._store.get_with_etag, key)

    def put_if_match(self, key: str, content: bytes, etag: str) -> bool:
        return self._repeat(self._store.put_if_match, key, content, etag)

    def put_file(self, key: str, path: Path) -> None:
        self._repeat(self._store.put_file, key, path)

    def get(self, key: str) -> bytes:
        return self._repeat(self._store.get, key)

    def get_start(self, key: str, count: int) -> tuple[bytes, int]:
        return self._repeat(self._store.get_start, key, count)

    def exists(self, key: str) -> bool:
        return self._repeat(self._store.exists, key)

    def get_file(self, key: str, path: Path) -> None:
        self._repeat(self._store.get_file, key, path)

    def list(self, prefix: str) -> builtins.list[str]:
        return self._repeat(self._store.list, prefix)

    def delete(self, key: str) -> None:
        self._repeat(self._store.delete, key)

    def link(self, key: str, seconds: int) -> str:
        return self._repeat(self._store.link, key, seconds)

    def _repeat(self, request: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        retrying = Retrying(
            retry=retry_if_exception(_passing),
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_random_exponential(max=MAX_WAIT_SECONDS),
            before_sleep=_log_failure,
            reraise=True,
        )
        return retrying(request, *args, **kwargs)


def _passing(error: BaseException) -> bool:
    return isinstance(error, ObjectStoreError) and not isinstance(error, ObjectStoreRefusedError)


def _log_failure(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("object store failed, trying again", error=str(error), attempt=state.attempt_number)
