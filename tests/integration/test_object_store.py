"""What the object stores do alike, on a real server and in memory: conditional writes, which keep a job from being paid
for twice, and the states of trainings.
"""

from datetime import timedelta

import pytest
import torch

from foldtune.errors import ObjectMissingError
from foldtune.object_store import ObjectStore, S3ObjectStore
from foldtune.testing import MemoryObjectStore
from tests.jobs import put_job
from tests.runbooks import tables
from tests.support import settings_of
from trainers.loop.checkpoints import Checkpoints, TrainingState


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
    content, tag = store.get_with_etag(key)
    assert content == b"one"
    assert store.put_if_match(key, b"two", tag)
    assert not store.put_if_match(key, b"three", tag)
    assert store.get(key) == b"two"


def test_what_was_deleted_is_not_replaced(store: ObjectStore, key: str) -> None:
    store.put(key, b"one")
    _, tag = store.get_with_etag(key)
    store.delete(key)
    assert not store.put_if_match(key, b"two", tag)
    with pytest.raises(ObjectMissingError):
        store.get_with_etag(key)


def test_a_trainings_state_comes_back(store: ObjectStore) -> None:
    job = put_job(MemoryObjectStore(), tables())
    checkpoints = Checkpoints(job, store, timedelta(0))
    assert checkpoints.load() is None
    kept = TrainingState(
        {"weights": torch.arange(2_000_000, dtype=torch.float32), "step": torch.tensor(7)}, {"losses": [0.1]}
    )
    checkpoints.save(kept)
    found = Checkpoints(job, store, timedelta(0)).load()
    assert found is not None
    assert found.facts == kept.facts
    assert {name: one.tolist() for name, one in found.tensors.items()} == {
        name: one.tolist() for name, one in kept.tensors.items()
    }
    another = job.model_copy(update={"snapshot_sha256": "1" * 64})
    assert Checkpoints(another, store, timedelta(0)).load() is None
    checkpoints.discard()
    assert checkpoints.load() is None
