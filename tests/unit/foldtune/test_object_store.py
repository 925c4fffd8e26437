"""What a server's answers mean: errors that pass, and refusals that do not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from foldtune.errors import TRANSIENT_ERRORS, InvalidSettingsError, ObjectStoreError, ObjectStoreRefusedError
from foldtune.object_keys import manifest_key
from foldtune.object_store import S3ObjectStore
from foldtune.settings import S3Settings
from tests.s3_proxy import CLOSED, Fault, Reply, S3Proxy

# Each client of boto3 takes a while to make.
pytestmark = pytest.mark.slow

Call = Callable[[S3ObjectStore, Path], object]
CALLS: dict[str, Call] = {
    "put": lambda store, _: store.put("k", b"x"),
    "put_if_absent": lambda store, _: store.put_if_absent("k", b"x"),
    "put_if_match": lambda store, _: store.put_if_match("k", b"x", "etag"),
    "put_file": lambda store, folder: store.put_file("k", folder / "file"),
    "get": lambda store, _: store.get("k"),
    "get_start": lambda store, _: store.get_start("k", 1),
    "get_file": lambda store, folder: store.get_file("k", folder / "got"),
    "list": lambda store, _: store.list("k"),
    "delete": lambda store, _: store.delete("k"),
}
PASSING: dict[str, Fault] = {
    "slow down": "SlowDown",
    "internal error": "InternalError",
    "a gateway's page": Reply(502, b"<html>Bad gateway"),
    "expired token": "ExpiredToken",
    "token to refresh": "TokenRefreshRequired",
    "skewed clock": "RequestTimeTooSkewed",
    "request timeout": "RequestTimeout",
    "closed connection": CLOSED,
}
OK = Reply(200, etag="etag")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Proxy]:
    """A server that gives whatever answer the test says, and retries without pauses."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    (tmp_path / "file").write_bytes(b"content")
    keys = S3Settings(access_key_id="key", secret_access_key=SecretStr("secret"))
    with S3Proxy(keys) as running:
        yield running


@pytest.mark.parametrize("problem", PASSING)
def test_what_passes_is_transient_whatever_was_called(problem: str, proxy: S3Proxy, tmp_path: Path) -> None:
    proxy.fail(PASSING[problem])
    store = S3ObjectStore(proxy.settings)
    for name, call in CALLS.items():
        with pytest.raises(ObjectStoreError) as raised:
            call(store, tmp_path)
        assert isinstance(raised.value, TRANSIENT_ERRORS), name
        assert not isinstance(raised.value, ObjectStoreRefusedError), name
    assert len(proxy.failed) <= len(CALLS) * 5 * 2


@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch", "NoSuchBucket", "NotImplemented"])
def test_what_needs_an_operator_is_a_refusal(code: str, proxy: S3Proxy, tmp_path: Path) -> None:
    proxy.fail(code)
    store = S3ObjectStore(proxy.settings)
    for name, call in CALLS.items():
        if name == "get_file":
            # Its HEAD has no body that could tell a missing bucket from a missing object.
            continue
        with pytest.raises(ObjectStoreRefusedError, match=code):
            call(store, tmp_path)
    assert len(proxy.failed) == len(CALLS) - 1
    with pytest.raises(ObjectStoreRefusedError):
        store.find("k")


def test_one_error_in_a_call_is_not_seen(proxy: S3Proxy, tmp_path: Path) -> None:
    store = S3ObjectStore(proxy.settings)
    for problem in ("slow down", "internal error", "a gateway's page", "closed connection", "request timeout"):
        proxy.fail(PASSING[problem], OK)
        store.put_file("k", tmp_path / "file")


def test_a_body_that_breaks_off_is_read_again(proxy: S3Proxy) -> None:
    cut = Reply(200, b"half", missing=4)
    proxy.fail(cut, cut, Reply(200, b"the whole", etag="etag"))
    store = S3ObjectStore(proxy.settings)
    assert store.get("k") == b"the whole"
    proxy.fail(cut)
    with pytest.raises(ObjectStoreError):
        store.get("k")


@pytest.mark.parametrize("call", ["get", "list", "put", "put_if_absent", "put_if_match"])
def test_an_answer_that_is_not_of_s3_is_transient(call: str, proxy: S3Proxy, tmp_path: Path) -> None:
    proxy.fail(Reply(200, b"<html>please log in"))
    with pytest.raises(ObjectStoreError):
        CALLS[call](S3ObjectStore(proxy.settings), tmp_path)


@pytest.mark.parametrize("call", ["put", "put_if_absent"])
def test_an_empty_answer_without_an_etag_is_no_write(call: str, proxy: S3Proxy, tmp_path: Path) -> None:
    proxy.fail(Reply(204))
    with pytest.raises(ObjectStoreError, match="without an ETag"):
        CALLS[call](S3ObjectStore(proxy.settings), tmp_path)


def test_keys_that_cannot_be_renewed_are_transient(proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3ObjectStore(proxy.settings)

    def expired(**_: object) -> None:
        msg = "Credentials were refreshed, but the refreshed credentials are still expired."
        raise RuntimeError(msg)

    monkeypatch.setattr(store._client, "put_object", expired)
    with pytest.raises(ObjectStoreError, match="still expired"):
        store.put("k", b"x")


def test_new_keys_of_a_profile_are_taken_once_the_old_ones_have_expired(
    proxy: S3Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    profile = "[default]\naws_access_key_id = {}\naws_secret_access_key = secret\n"
    file.write_text(profile.format("OLD"))
    keys = {"access_key_id": None, "secret_access_key": None}
    store = S3ObjectStore(proxy.settings.model_copy(update=keys))
    file.write_text(profile.format("NEW"))
    proxy.fail("ExpiredToken")
    with pytest.raises(ObjectStoreError):
        store.put("k", b"x")
    proxy.fail(OK)
    store.put("k", b"x")
    assert "Credential=NEW/" in proxy.authorization


def test_a_store_that_is_away_is_not_waited_for_by_its_check(proxy: S3Proxy) -> None:
    proxy.fail(CLOSED)
    S3ObjectStore(proxy.settings).check()
    assert len(proxy.failed) <= 2


def test_a_store_that_takes_no_writes_is_refused_by_name(proxy: S3Proxy) -> None:
    proxy.fail("AccessDenied")
    with pytest.raises(InvalidSettingsError, match=rf"{proxy.endpoint_url}.*AccessDenied"):
        S3ObjectStore(proxy.settings).check()


def test_keys_are_below_the_prefix_and_addresses_elsewhere_in_the_bucket_stay_what_they_are() -> None:
    plain, store = (S3ObjectStore(S3Settings(bucket="bucket", prefix=prefix)) for prefix in ("", "a-"))
    assert store.uri("jobs/x") == "s3://bucket/a-jobs/x"
    for uri in ("s3://bucket/a-jobs/x", "s3://bucket/jobs/x", "s3://bucket//x", "s3://bucket/a-/x", "s3://bucket/a-"):
        assert store.uri(store.key(uri)) == uri
        assert plain.uri(plain.key(uri)) == uri
    assert store.key("s3://bucket/a-jobs/x") == "jobs/x"
    assert manifest_key(store.key("s3://bucket/base-models/x")) == "/base-models/x/manifest.json"
