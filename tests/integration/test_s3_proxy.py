"""The faults that ``tests.s3_proxy`` injects, as the object store's clients see them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from foldtune.errors import ObjectStoreError
from foldtune.object_store import S3ObjectStore
from tests.s3_proxy import CLOSED, LOST, S3Proxy
from tests.support import settings_of


@pytest.fixture
def s3(variables: dict[str, str]) -> Iterator[S3Proxy]:
    with S3Proxy(settings_of(variables).s3) as proxy:
        yield proxy


@pytest.fixture
def store(s3: S3Proxy) -> S3ObjectStore:
    return S3ObjectStore(s3.settings)


def test_requests_pass_through_the_proxy(store: S3ObjectStore, s3: S3Proxy, tmp_path: Path) -> None:
    large = bytes(range(256)) * (36 * 1024)
    (tmp_path / "large").write_bytes(large)
    store.put_file("faulty/large", tmp_path / "large")
    assert store.get("faulty/large") == large
    assert store.put_if_absent("faulty/small", b"one")
    assert not store.put_if_absent("faulty/small", b"two")
    assert store.exists("faulty/small")
    assert not store.exists("faulty/none")
    assert store.list("faulty/") == ["faulty/large", "faulty/small"]
    store.get_file("faulty/large", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == large
    store.delete("faulty/small")
    assert store.find("faulty/small") is None
    assert not s3.failed


def test_the_proxy_injects_faults_until_it_is_healed(store: S3ObjectStore, s3: S3Proxy) -> None:
    for fault in ("AccessDenied", "ExpiredToken", "RequestTimeTooSkewed"):
        s3.fail(fault, only=lambda method, _: method == "PUT")
        with pytest.raises(ObjectStoreError, match=fault):
            store.put("faulty/object", b"one")
    s3.heal()
    # Passed by the client's own retries.
    s3.fail("SlowDown", times=1)
    store.put("faulty/object", b"one")
    s3.fail(CLOSED, times=1)
    assert store.get("faulty/object") == b"one"
    s3.fail(LOST, only=lambda method, _: method == "PUT", times=1)
    assert not store.put_if_absent("faulty/lost", b"one")
    assert store.get("faulty/lost") == b"one"
    assert len(s3.failed) >= 6
