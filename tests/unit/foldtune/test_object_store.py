"""What a server's answers mean: errors that pass, and refusals that do not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from foldtune.errors import TRANSIENT_ERRORS, InvalidSettingsError, ObjectStoreError, ObjectStoreRefusedError
from foldtune.object_store import S3ObjectStore
from tests.s3_gateway import Gateway, Reply, s3_gateway

# Each client of boto3 takes a while to make.
pytestmark = pytest.mark.slow

Call = Callable[[S3ObjectStore, Path], object]
CALLS: dict[str, Call] = {
    "put": lambda store, _: store.put("k", b"x"),
    "put_if_absent": lambda store, _: store.put_if_absent("k", b"x"),
    "put_if_match": lambda store, _: store.put_if_match("k", b"x", "etag"),
    "put_file": lambda store, folder: store.put_file("k", folder / "file"),
    "get": lambda store, _: store.get("k"),
    "get_file": lambda store, folder: store.get_file("k", folder / "got"),
    "list": lambda store, _: store.list("k"),
    "delete": lambda store, _: store.delete("k"),
}
PASSING = {
    "slow down": Reply.error(503, "SlowDown"),
    "internal error": Reply.error(500, "InternalError"),
    "a gateway's page": Reply(502, b"<html>Bad gateway"),
    "expired token": Reply.error(400, "ExpiredToken"),
    "token to refresh": Reply.error(400, "TokenRefreshRequired"),
    "skewed clock": Reply.error(403, "RequestTimeTooSkewed"),
    "request timeout": Reply.error(400, "RequestTimeout"),
    "closed connection": Reply(0),
}


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gateway]:
    """A server that gives whatever answer the test says, and retries without pauses."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    (tmp_path / "file").write_bytes(b"content")
    with s3_gateway(Gateway()) as running:
        yield running


@pytest.mark.parametrize("problem", PASSING)
def test_what_passes_is_transient_whatever_was_called(problem: str, gateway: Gateway, tmp_path: Path) -> None:
    gateway.reply = PASSING[problem]
    store = S3ObjectStore(gateway.settings)
    for name, call in CALLS.items():
        with pytest.raises(ObjectStoreError) as raised:
            call(store, tmp_path)
        assert isinstance(raised.value, TRANSIENT_ERRORS), name
        assert not isinstance(raised.value, ObjectStoreRefusedError), name
    assert gateway.requests <= len(CALLS) * 5 * 2


@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch", "NoSuchBucket", "NotImplemented"])
def test_what_needs_an_operator_is_a_refusal(code: str, gateway: Gateway, tmp_path: Path) -> None:
    gateway.reply = Reply.error({"NoSuchBucket": 404, "NotImplemented": 501}.get(code, 403), code)
    store = S3ObjectStore(gateway.settings)
    for name, call in CALLS.items():
        if name == "get_file":
            # Its HEAD has no body that could tell a missing bucket from a missing object.
            continue
        with pytest.raises(ObjectStoreRefusedError, match=code):
            call(store, tmp_path)
    assert gateway.requests == len(CALLS) - 1
    with pytest.raises(ObjectStoreRefusedError):
        store.find("k")


def test_one_error_in_a_call_is_not_seen(gateway: Gateway, tmp_path: Path) -> None:
    store = S3ObjectStore(gateway.settings)
    for problem in ("slow down", "internal error", "a gateway's page", "closed connection", "request timeout"):
        gateway.replies, gateway.reply = [PASSING[problem]], Reply(200)
        store.put_file("k", tmp_path / "file")


def test_a_body_that_breaks_off_is_read_again(gateway: Gateway) -> None:
    cut = Reply(200, b"half", missing=4)
    gateway.replies, gateway.reply = [cut, cut], Reply(200, b"the whole")
    store = S3ObjectStore(gateway.settings)
    with pytest.raises(KeyError):
        # Without an ETag, which a real server sends: the body was read to its end.
        store.get("k")
    gateway.reply = cut
    with pytest.raises(ObjectStoreError):
        store.get("k")


def test_an_answer_that_is_not_of_s3_is_transient(gateway: Gateway) -> None:
    gateway.reply = Reply(200, b"<html>please log in")
    with pytest.raises(ObjectStoreError):
        S3ObjectStore(gateway.settings).list("k")


def test_keys_that_cannot_be_renewed_are_transient(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3ObjectStore(gateway.settings)

    def expired(**_: object) -> None:
        msg = "Credentials were refreshed, but the refreshed credentials are still expired."
        raise RuntimeError(msg)

    monkeypatch.setattr(store._client, "put_object", expired)
    with pytest.raises(ObjectStoreError, match="still expired"):
        store.put("k", b"x")


def test_new_keys_of_a_profile_are_taken_once_the_old_ones_have_expired(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    profile = "[default]\naws_access_key_id = {}\naws_secret_access_key = secret\n"
    file.write_text(profile.format("OLD"))
    keys = {"access_key_id": None, "secret_access_key": None}
    store = S3ObjectStore(gateway.settings.model_copy(update=keys))
    file.write_text(profile.format("NEW"))
    gateway.reply = Reply.error(400, "ExpiredToken")
    with pytest.raises(ObjectStoreError):
        store.put("k", b"x")
    gateway.reply = Reply(200)
    store.put("k", b"x")
    assert "Credential=NEW/" in gateway.authorization


def test_a_store_that_is_away_is_not_waited_for_by_its_check(gateway: Gateway) -> None:
    gateway.reply = Reply(0)
    S3ObjectStore(gateway.settings).check()
    assert gateway.requests <= 2


def test_a_store_that_takes_no_writes_is_refused_by_name(gateway: Gateway) -> None:
    gateway.reply = Reply.error(403, "AccessDenied")
    with pytest.raises(InvalidSettingsError, match=rf"127.0.0.1:{gateway.port}.*AccessDenied"):
        S3ObjectStore(gateway.settings).check()
