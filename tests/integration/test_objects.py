"""Conditional writes, which keep a job from being paid for twice: the same on a real server and in memory."""

import pytest

from infra.errors import ObjectMissingError
from infra.objects import MemoryObjectStore, ObjectStore, S3ObjectStore
from tests.support import settings_of


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """Each store that ships."""
    if request.param == "memory":
        return MemoryObjectStore()
    return S3ObjectStore(settings_of(request.getfixturevalue("variables")).s3)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key of the test's own."""
    return f"objects/{request.node.name}"


def test_of_two_that_write_where_nothing_is_one_does(store: ObjectStore, key: str) -> None:
    assert store.put_if_absent(key, b"first")
    assert not store.put_if_absent(key, b"second")
    assert store.get(key) == b"first"


def test_of_two_that_replace_the_same_version_one_does(store: ObjectStore, key: str) -> None:
    store.put(key, b"one")
    content, tag = store.tagged(key)
    assert content == b"one"
    assert store.replace(key, b"two", tag)
    assert not store.replace(key, b"three", tag)
    assert store.get(key) == b"two"


def test_what_was_deleted_is_not_replaced(store: ObjectStore, key: str) -> None:
    store.put(key, b"one")
    _, tag = store.tagged(key)
    store.delete(key)
    assert not store.replace(key, b"two", tag)
    with pytest.raises(ObjectMissingError):
        store.tagged(key)
