"""The contract of the object stores, on a real S3 server and in memory, and a training's checkpoint on each.

Conditional writes are what prevents a job from being paid for twice.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from foldtune.errors import InvalidSettingsError, ObjectMissingError
from foldtune.object_store import ObjectStore, S3ObjectStore
from foldtune.settings import Settings, settings_environment
from foldtune.testing import MemoryObjectStore
from streams.worker.process import run as run_worker
from tests.jobs import put_job
from tests.runbooks import tables
from tests.s3_proxy import S3Proxy
from tests.support import settings_of
from trainers.job import _run_rank_0 as run_job
from trainers.loop.checkpoints import Checkpoints, TrainingState


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """Each implementation."""
    if request.param == "memory":
        return MemoryObjectStore()
    return S3ObjectStore(settings_of(request.getfixturevalue("variables")).s3)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key for this test only."""
    return f"objects/{request.node.name}"


def test_objects_are_listed_by_prefix_in_order(store: ObjectStore, key: str) -> None:
    for name in ("b", "a/c", "a/b"):
        store.put(f"{key}/{name}", name.encode())
    assert store.list(f"{key}/") == [f"{key}/a/b", f"{key}/a/c", f"{key}/b"]
    assert store.list(f"{key}/a/") == [f"{key}/a/b", f"{key}/a/c"]
    assert store.list(f"{key}/none") == []
    assert store.get(f"{key}/a/b") == b"a/b"


def test_stores_with_other_prefixes_meet_only_by_address(settings: Settings, key: str, tmp_path: Path) -> None:
    stores = [S3ObjectStore(settings.s3.model_copy(update={"prefix": f"{key}/{name}-"})) for name in ("a", "ab", "b")]
    first, *others = stores
    for store in stores:
        assert store.put_if_absent("jobs/x", store.prefix.encode())
        assert store.list("jobs/") == ["jobs/x"]
        assert store.get("jobs/x") == store.prefix.encode()
        assert store.has_any("jobs/")
        assert not store.has_any("x")
    for store in others:
        elsewhere = store.key(first.uri("jobs/x"))
        content, etag = store.get_with_etag(elsewhere)
        assert content == first.prefix.encode()
        assert store.put_if_match(elsewhere, content, etag)
        store.get_file(elsewhere, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == content
        assert store.list(store.key(first.uri("jobs/"))) == [elsewhere]
    first.delete("jobs/x")
    assert [store.exists("jobs/x") for store in stores] == [False, True, True]


def test_the_start_of_an_object_is_read_with_its_size(store: ObjectStore, key: str) -> None:
    store.put(key, b"0123456789")
    assert store.get_start(key, 4) == (b"0123", 10)
    assert store.get_start(key, 99) == (b"0123456789", 10)
    store.put(key, b"")
    assert store.get_start(key, 4) == (b"", 0)
    store.delete(key)
    with pytest.raises(ObjectMissingError):
        store.get_start(key, 4)


def test_a_put_overwrites(store: ObjectStore, key: str) -> None:
    store.put(key, b"one")
    store.put(key, b"")
    assert store.get(key) == b""


def test_files_are_uploaded_and_downloaded(store: ObjectStore, key: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    # Above boto3's threshold for uploads in parts.
    source.write_bytes(bytes(range(256)) * (36 * 1024))
    store.put_file(key, source)
    store.get_file(key, target)
    assert target.read_bytes() == source.read_bytes()


def test_a_missing_object_is_an_error_except_to_delete(store: ObjectStore, key: str, tmp_path: Path) -> None:
    store.delete(key)
    with pytest.raises(ObjectMissingError, match="Object not found: s3://"):
        store.get(key)
    with pytest.raises(ObjectMissingError):
        store.get_with_etag(key)
    with pytest.raises(ObjectMissingError):
        store.get_file(key, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_object_that_may_be_missing_is_found_or_not(store: ObjectStore, key: str) -> None:
    # A key that begins with the same text is another object.
    store.put(f"{key}.longer", b"another")
    assert not store.exists(key)
    assert store.find(key) is None
    assert store.find_with_etag(key) is None
    store.put(key, b"")
    assert store.exists(key)
    assert store.find(key) == b""
    assert store.find_with_etag(key) == store.get_with_etag(key)
    store.delete(key)
    assert not store.exists(key)


def test_a_uri_is_parsed_into_its_key(store: ObjectStore, key: str) -> None:
    assert store.key(store.uri(key)) == key
    with pytest.raises(ValueError, match="is not in the bucket"):
        store.key("s3://another/key")


def test_put_if_absent_succeeds_once(store: ObjectStore, key: str) -> None:
    assert store.put_if_absent(key, b"first")
    assert not store.put_if_absent(key, b"second")
    assert store.get(key) == b"first"


def test_put_if_match_succeeds_once(store: ObjectStore, key: str) -> None:
    store.put(key, b"one")
    content, etag = store.get_with_etag(key)
    assert content == b"one"
    assert store.put_if_match(key, b"two", etag)
    assert not store.put_if_match(key, b"three", etag)
    assert store.get(key) == b"two"


def test_one_of_several_concurrent_conditional_writes_succeeds(store: ObjectStore, key: str) -> None:
    contents = [str(number).encode() for number in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        written = list(pool.map(lambda content: store.put_if_absent(key, content), contents))
        assert written.count(True) == 1
        content, etag = store.get_with_etag(key)
        assert content == contents[written.index(True)]
        # S3Proxy 4.1 compares the ETag and then writes, not atomically: in 29 of 40 rounds several writes succeeded.
        if isinstance(store, S3ObjectStore):
            return
        replaced = list(pool.map(lambda content: store.put_if_match(key, content * 2, etag), contents))
    assert replaced.count(True) == 1
    assert store.get(key) == contents[replaced.index(True)] * 2


def test_a_deleted_object_is_not_replaced(store: ObjectStore, key: str) -> None:
    store.put(key, b"one")
    _, etag = store.get_with_etag(key)
    store.delete(key)
    assert not store.put_if_match(key, b"two", etag)
    with pytest.raises(ObjectMissingError):
        store.get_with_etag(key)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"dropped": frozenset({"if-none-match"})}, "ignores If-None-Match, .* needed is"),
        ({"dropped": frozenset({"if-match"})}, "ignores If-Match, .* needed is"),
        (
            {"refuses_checksums": True},
            "refuses the checksums .*FOLDTUNE_S3__CHECKSUMS=when_required: .*NotImplemented",
        ),
    ],
)
def test_a_store_that_cannot_be_relied_on_is_refused_with_words(
    settings: Settings, behaviour: dict[str, Any], words: str
) -> None:
    with S3Proxy(settings.s3, **behaviour) as proxy:
        unfit = settings.model_copy(update={"s3": proxy.settings})
        words = rf"endpoint_url {proxy.settings.endpoint_url}, bucket .*: it {words}"
        with pytest.raises(InvalidSettingsError, match=words):
            S3ObjectStore(unfit.s3).check()
        with pytest.raises(InvalidSettingsError, match=words):
            run_worker(unfit)
        with pytest.raises(InvalidSettingsError, match=words):
            run_job("s3://bucket/job.json", unfit)
        command = [sys.executable, "-m", "foldtune", "launcher"]
        child = os.environ | settings_environment(unfit)
        launcher = subprocess.run(command, env=child, capture_output=True, text=True, check=False, timeout=60)
        assert launcher.returncode != 0
        assert re.search(words, " ".join(launcher.stderr.split())), launcher.stderr
        assert "Traceback" not in launcher.stderr


def test_a_store_without_checksums_takes_everything_when_told_so(settings: Settings, key: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(1 << 20) * 9)
    with S3Proxy(settings.s3, refuses_checksums=True) as proxy:
        store = S3ObjectStore(proxy.settings.model_copy(update={"checksums": "when_required"}))
        store.check()
        store.put_file(key, source)
        store.get_file(key, target)
        assert target.read_bytes() == source.read_bytes()
        assert not store.put_if_absent(key, b"")


def test_a_store_that_honours_conditions_is_taken_again_and_again(settings: Settings) -> None:
    for _ in range(2):
        S3ObjectStore(settings.s3).check()


def test_a_checkpoint_is_stored_and_restored(store: ObjectStore) -> None:
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
