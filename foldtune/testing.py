"""Fakes with the contract of the real thing, for tests of code that uses foldtune."""

import hashlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from foldtune.errors import ObjectMissingError
from foldtune.object_store import ObjectStore


class MemoryObjectStore(ObjectStore):
    """An object store in memory; thread-safe, and passes the same contract tests as ``S3ObjectStore``."""

    def __init__(self, bucket: str = "memory") -> None:
        self.bucket = bucket
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """Its conditional writes hold."""

    def put(self, key: str, content: bytes) -> None:
        with self._lock:
            self._objects[key] = content

    def put_if_absent(self, key: str, content: bytes) -> bool:
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key] = content
            return True

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        content = self.get(key)
        return content, _etag(content)

    def put_if_match(self, key: str, content: bytes, etag: str) -> bool:
        with self._lock:
            if key not in self._objects or _etag(self._objects[key]) != etag:
                return False
            self._objects[key] = content
            return True

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def get(self, key: str) -> bytes:
        try:
            return self._objects[key]
        except KeyError:
            raise ObjectMissingError(self.uri(key)) from None

    def get_start(self, key: str, count: int) -> tuple[bytes, int]:
        content = self.get(key)
        return content[:count], len(content)

    def exists(self, key: str) -> bool:
        return key in self._objects

    def get_file(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in list(self._objects) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(key, None)

    def link(self, key: str, seconds: int) -> str:
        return f"https://{self.bucket}.invalid/{key}?seconds={seconds}"


class FakeClock:
    """A clock that stands still until it is moved; called, it tells the time, as ``foldtune.events.now`` does."""

    def __init__(self, moment: datetime | None = None) -> None:
        self.moment = moment or datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, time: timedelta) -> datetime:
        """Let time pass; the time after it."""
        self.moment += time
        return self.moment


def _etag(content: bytes) -> str:
    # A digest, as S3's: equal for equal bytes.
    return hashlib.sha256(content).hexdigest()
