from collections.abc import Callable
from pathlib import Path

import pytest

from foldtune.errors import ObjectMissingError, ObjectStoreError, ObjectStoreRefusedError
from foldtune.object_store import ObjectStore
from foldtune.testing import MemoryObjectStore
from trainers import retrying_store
from trainers.retrying_store import RetryingStore


class FailingStore(MemoryObjectStore):
    """Fails the next ``times`` requests, before or after they are done."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.requests = 0, 0
        self.error: type[ObjectStoreError] = ObjectStoreError
        self.lose_responses = False

    def fail(self, key: str, request: Callable[[], object]) -> None:
        self.requests += 1
        if self.times:
            self.times -= 1
            if self.lose_responses:
                request()
            raise self.error(self.uri(key), "SlowDown")

    def put_if_absent(self, key: str, content: bytes) -> bool:
        self.fail(key, lambda: super(FailingStore, self).put_if_absent(key, content))
        return super().put_if_absent(key, content)

    def put(self, key: str, content: bytes) -> None:
        self.fail(key, lambda: super(FailingStore, self).put(key, content))
        super().put(key, content)

    def get(self, key: str) -> bytes:
        self.fail(key, lambda: None)
        return super().get(key)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FailingStore:
    monkeypatch.setattr(retrying_store, "MAX_WAIT_SECONDS", 0.001)
    return FailingStore()


def test_every_request_goes_to_the_store(tmp_path: Path) -> None:
    memory = MemoryObjectStore()
    store: ObjectStore = RetryingStore(memory)
    (tmp_path / "file").write_bytes(b"file")
    store.put_file("a/file", tmp_path / "file")
    store.get_file("a/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"file"
    store.put("a/one", b"1")
    assert store.put_if_absent("a/two", b"2")
    assert not store.put_if_absent("a/two", b"3")
    content, etag = store.get_with_etag("a/two")
    assert content == b"2"
    assert store.put_if_match("a/two", b"3", etag)
    assert store.exists("a/two")
    assert store.list("a/") == memory.list("") == ["a/file", "a/one", "a/two"]
    store.delete("a/one")
    assert store.find("a/one") is None
    assert store.uri("a") == memory.uri("a")


def test_a_request_is_repeated_until_the_store_is_back(failing: FailingStore) -> None:
    failing.times = 3
    RetryingStore(failing).put("key", b"content")
    assert (failing.requests, failing.get("key")) == (4, b"content")


def test_a_conditional_write_whose_response_was_lost_is_not_doubled(failing: FailingStore) -> None:
    failing.times, failing.lose_responses = 1, True
    assert not RetryingStore(failing).put_if_absent("key", b"mine")
    assert failing.get("key") == b"mine"


@pytest.mark.parametrize("error", [ObjectStoreRefusedError, ObjectMissingError])
def test_what_time_does_not_mend_is_not_repeated(
    failing: FailingStore, error: type[ObjectStoreError] | type[ObjectMissingError]
) -> None:
    if issubclass(error, ObjectStoreError):
        failing.times, failing.error = 100, error
    with pytest.raises(error):
        RetryingStore(failing).get("key")
    assert failing.requests == 1


def test_the_time_for_repetitions_is_bounded(failing: FailingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_store, "PATIENCE_SECONDS", 0.05)
    failing.times = 1_000_000
    with pytest.raises(ObjectStoreError, match="SlowDown"):
        RetryingStore(failing).get("key")
    assert failing.requests > 1
