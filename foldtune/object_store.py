"""The port of the object store, and its implementation on S3 (``foldtune.testing`` has one in memory)."""

import builtins
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import boto3
import structlog
import urllib3
from boto3.exceptions import Boto3Error, S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from foldtune.errors import InvalidSettingsError, ObjectMissingError, ObjectStoreError, ObjectStoreRefusedError
from foldtune.object_keys import CHECK_KEY, split_uri
from foldtune.settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


log = structlog.get_logger(__name__)

# All that boto3 raises for what happens outside of this process; its callers wrap it in an InfrastructureError. An
# unreadable answer, a body that breaks off, and credentials that cannot be renewed (RuntimeError, ValueError) are none
# of its own classes.
AWS_ERRORS = (
    *(Boto3Error, BotoCoreError, ClientError, ResponseParserError, urllib3.exceptions.HTTPError),
    *(RuntimeError, ValueError),
)
# Of a body that breaks off: boto3 repeats only what fails before it.
_BODY_ERRORS = (
    *(ReadTimeoutError, ResponseStreamingError, IncompleteReadError, FlexibleChecksumError),
    urllib3.exceptions.HTTPError,
)
# Answers of 3xx and 4xx that pass: of the clock, of the connection, and of credentials that are renewed.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidAccessKeyId"}
_PASSING = _EXPIRED | {
    *("RequestTimeTooSkewed", "RequestTimeout", "RequestTimeoutException", "IncompleteBody", "BadDigest"),
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "OperationAborted", "NoSuchUpload"),
}
_PASSING_STATUSES = {408, 409, 412, 425, 429}
# A 404 too, and not that of a missing object.
_NO_BUCKET = "NoSuchBucket"


class ObjectStore(Protocol):
    """An object store with conditional writes. Keys are relative to a prefix in one bucket.

    A key that begins with a slash is of an object elsewhere in the bucket; ``key`` gives those to addresses.
    """

    bucket: str
    prefix: str = ""

    def put(self, key: str, content: bytes) -> None:
        """Write an object atomically."""

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Write an object unless it exists; of concurrent callers at most one gets ``True``.

        If the response to a successful write is lost, the retry returns ``False``; a unique id in the content shows
        whose write it was.
        """

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """An object's bytes and the ETag of this version, for ``put_if_match``; raises like ``get``."""

    def put_if_match(self, key: str, content: bytes, etag: str) -> bool:
        """Overwrite the version with this ETag; of concurrent callers at most one gets ``True``.

        If the response is lost, the retry returns ``False``, as with ``put_if_absent``.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file; a large one in parts."""

    def get(self, key: str) -> bytes:
        """An object's bytes.

        Raises:
            ObjectMissingError: the object does not exist.
        """

    def get_start(self, key: str, count: int) -> tuple[bytes, int]:
        """The first ``count`` bytes of an object, fewer if it is shorter, and its size; raises like ``get``."""

    def find(self, key: str) -> bytes | None:
        """An object's bytes; ``None`` if it does not exist."""
        try:
            return self.get(key)
        except ObjectMissingError:
            return None

    def find_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """Like ``get_with_etag``; ``None`` if the object does not exist."""
        try:
            return self.get_with_etag(key)
        except ObjectMissingError:
            return None

    def exists(self, key: str) -> bool:
        """Whether an object has this key."""

    def get_file(self, key: str, path: Path) -> None:
        """Download an object to a file; raises like ``get``."""

    def list(self, prefix: str) -> builtins.list[str]:
        """The keys under a prefix, sorted."""

    def delete(self, key: str) -> None:
        """Delete an object; no effect if it does not exist."""

    def link(self, key: str, seconds: int) -> str:
        """A web address at which the object can be fetched without credentials, for so long; it may not exist."""

    def uri(self, key: str) -> str:
        """The object's ``s3://`` address."""
        return f"s3://{self.bucket}/{self.full_key(key)}"

    def full_key(self, key: str) -> str:
        """The key as the bucket has it."""
        if self.prefix and key.startswith("/"):
            return key[1:]
        return self.prefix + key

    def key(self, uri: str) -> str:
        """The key of an address in this bucket.

        Raises:
            ValueError: the address is in another bucket.
        """
        bucket, key = split_uri(uri)
        if bucket != self.bucket:
            msg = f"{uri} is not in the bucket {self.bucket!r}"
            raise ValueError(msg)
        if not self.prefix:
            return key
        below = key.removeprefix(self.prefix)
        return f"/{key}" if below == key or below.startswith("/") else below


class S3ObjectStore(ObjectStore):
    """Amazon S3, or any server with its API and conditional writes.

    Every method raises ``ObjectStoreError`` if the store does not complete the request, after boto3's own retries, and
    its subclass ``ObjectStoreRefusedError`` where repeating it is of no use.
    """

    def __init__(self, settings: S3Settings, session: boto3.Session | None = None) -> None:
        """``session`` has other credentials than boto3's chain would find, and renews them itself."""
        self.bucket, self.prefix = settings.bucket, settings.prefix
        self._settings = settings
        self._session = session
        self._client = _client(settings, session)

    def check(self) -> None:
        """Check once that the store honours conditional writes; one that is away is not waited for.

        Raises:
            InvalidSettingsError: it ignores them, or takes no writes; with what is needed.
        """
        endpoint = self._client.meta.endpoint_url
        # Amazon's own honours them.
        if endpoint.removesuffix(".cn").endswith(".amazonaws.com"):
            return
        try:
            problem = self._problem()
        except ObjectStoreError as error:
            log.warning("object store not checked", endpoint=endpoint, bucket=self.bucket, error=str(error))
            return
        if problem:
            raise InvalidSettingsError(f"s3.endpoint_url {endpoint}, bucket {self.bucket!r}: {problem}")

    def _problem(self) -> str | None:
        """What makes the store unfit, by its answers to three writes of one object."""
        quick = S3ObjectStore(self._settings)
        quick._client = _client(self._settings, attempts=2, connect_timeout=3, read_timeout=5)
        try:
            quick.put_if_absent(CHECK_KEY, b"")
        except ObjectStoreRefusedError as error:
            cause = error.args[1]
            if self._settings.checksums == "when_supported" and _writes_without_checksums(self._settings):
                return f"it refuses the checksums that boto3 sends; set FOLDTUNE_S3__CHECKSUMS=when_required: {cause}"
            return f"it refuses to write {CHECK_KEY!r}: {cause}"
        ignored = ["If-None-Match"] if quick.put_if_absent(CHECK_KEY, b"") else []
        if quick.put_if_match(CHECK_KEY, b"", f'"{"0" * 32}"'):
            ignored.append("If-Match")
        if not ignored:
            return None
        harm = "without which a job may run and be announced twice"
        return f"it ignores {' and '.join(ignored)}, {harm}; needed is a server with S3's conditional writes"

    def put(self, key: str, content: bytes) -> None:
        with self._wrapped_errors(key):
            self._etag(key, self._client.put_object(Bucket=self.bucket, Key=self.full_key(key), Body=content))

    def put_if_absent(self, key: str, content: bytes) -> bool:
        # 412: the object exists. 409: a concurrent write of it is in progress.
        return self._put_on_condition(key, content, {409, 412}, IfNoneMatch="*")

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        with self._wrapped_errors(key, may_be_missing=True):
            return self._get(key)

    def get_start(self, key: str, count: int) -> tuple[bytes, int]:
        with self._wrapped_errors(key, may_be_missing=True):
            try:
                return self._get_start(key, count)
            except ClientError as error:
                # An empty object has no such range.
                if _status(error) == 416:
                    return b"", 0
                raise

    @retry(retry=retry_if_exception_type(_BODY_ERRORS), stop=stop_after_attempt(3), reraise=True)
    def _get(self, key: str) -> tuple[bytes, str]:
        response = self._client.get_object(Bucket=self.bucket, Key=self.full_key(key))
        return response["Body"].read(), self._etag(key, response)

    @retry(retry=retry_if_exception_type(_BODY_ERRORS), stop=stop_after_attempt(3), reraise=True)
    def _get_start(self, key: str, count: int) -> tuple[bytes, int]:
        response = self._client.get_object(Bucket=self.bucket, Key=self.full_key(key), Range=f"bytes=0-{count - 1}")
        self._etag(key, response)
        # "bytes 0-7/1234"; without it the server has ignored the range, and answers with the whole object.
        size = response.get("ContentRange", "").rpartition("/")[2]
        return response["Body"].read(count), int(size or response["ContentLength"])

    def _etag(self, key: str, response: Mapping[str, Any]) -> str:
        """Of what answers 200 without one, such as a proxy's page of HTML, nothing is an object nor was written."""
        if etag := response.get("ETag"):
            return str(etag)
        raise ObjectStoreError(self.uri(key), "answered without an ETag, so not by an S3 server")

    def put_if_match(self, key: str, content: bytes, etag: str) -> bool:
        # 404: the object was deleted in the meantime.
        return self._put_on_condition(key, content, {404, 409, 412}, IfMatch=etag)

    def put_file(self, key: str, path: Path) -> None:
        with self._wrapped_errors(key):
            self._client.upload_file(str(path), self.bucket, self.full_key(key))

    def get(self, key: str) -> bytes:
        return self.get_with_etag(key)[0]

    def exists(self, key: str) -> bool:
        try:
            with self._wrapped_errors(key, may_be_missing=True):
                self._etag(key, self._client.head_object(Bucket=self.bucket, Key=self.full_key(key)))
        except ObjectMissingError:
            return False
        return True

    def get_file(self, key: str, path: Path) -> None:
        with self._wrapped_errors(key, may_be_missing=True):
            self._client.download_file(self.bucket, self.full_key(key), str(path))

    def list(self, prefix: str) -> builtins.list[str]:
        full = self.full_key(prefix)
        with self._wrapped_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=full)
            found = sorted(item["Key"] for page in pages for item in page.get("Contents", []))
        return [prefix + key.removeprefix(full) for key in found]

    def has_any(self, prefix: str) -> bool:
        """Whether there is a key under a prefix."""
        with self._wrapped_errors(prefix):
            page = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.full_key(prefix), MaxKeys=1)
        return bool(page.get("Contents"))

    def delete(self, key: str) -> None:
        with self._wrapped_errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=self.full_key(key))

    def link(self, key: str, seconds: int) -> str:
        with self._wrapped_errors(key):
            where = {"Bucket": self.bucket, "Key": self.full_key(key)}
            return self._client.generate_presigned_url("get_object", Params=where, ExpiresIn=seconds)

    def _put_on_condition(self, key: str, content: bytes, failed: set[int], **condition: Any) -> bool:
        """Whether the object was written; ``failed`` are the HTTP statuses of a condition that is not met."""
        with self._wrapped_errors(key):
            try:
                full = self.full_key(key)
                self._etag(key, self._client.put_object(Bucket=self.bucket, Key=full, Body=content, **condition))
            except ClientError as error:
                if _status(error) in failed and _code(error) != _NO_BUCKET:
                    return False
                raise
        return True

    @contextmanager
    def _wrapped_errors(self, key: str, *, may_be_missing: bool = False) -> Iterator[None]:
        try:
            yield
        except AWS_ERRORS as error:
            answer = _answer(error)
            status, code = (_status(answer), _code(answer)) if answer else (0, "")
            if may_be_missing and status == 404 and code != _NO_BUCKET:
                raise ObjectMissingError(self.uri(key)) from error
            # The answer to a HEAD has no body that names the reason.
            unknown = code == str(status)
            chain = self._settings.access_key_id is None and self._session is None
            if chain and (code in _EXPIRED or (unknown and status in {400, 403})):
                # The chain's sources are read anew: a profile's file may have the next key by now. Not by the default
                # session, which keeps the credentials that it found first.
                with suppress(InvalidSettingsError):
                    self._client = _client(self._settings, boto3.Session())
            passing = unknown or status in _PASSING_STATUSES or code in _PASSING
            # 501: a feature that the server does not have.
            if (300 <= status < 500 or status == 501) and not passing:
                raise ObjectStoreRefusedError(self.uri(key), error) from error
            raise ObjectStoreError(self.uri(key), error) from error


def _client(
    settings: S3Settings,
    session: boto3.Session | None = None,
    *,
    attempts: int = 5,
    connect_timeout: int = 5,
    read_timeout: int = 60,
) -> "S3Client":
    secret = settings.secret_access_key
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        request_checksum_calculation=settings.checksums,
        response_checksum_validation=settings.checksums,
        # A self-hosted server has one host name for all buckets.
        s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
    )
    try:
        return (session or boto3).client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=config,
        )
    except AWS_ERRORS as error:
        # An unknown AWS_PROFILE, or an endpoint that is not a URL.
        raise InvalidSettingsError(f"s3 or AWS_…: {error}") from error


def _writes_without_checksums(settings: S3Settings) -> bool:
    try:
        S3ObjectStore(settings.model_copy(update={"checksums": "when_required"})).put(CHECK_KEY, b"")
    except ObjectStoreError:
        return False
    return True


def _answer(error: Exception) -> ClientError | None:
    """The server's answer that led to an error; boto3 wraps that of a file's upload."""
    cause = error.__context__ if isinstance(error, S3UploadFailedError) else error
    return cause if isinstance(cause, ClientError) else None


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
