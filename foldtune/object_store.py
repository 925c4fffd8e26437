"""The port of the object store, and its implementation on S3 (``foldtune.testing`` has one in memory)."""

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from foldtune.errors import InvalidSettingsError, ObjectMissingError, ObjectStoreError
from foldtune.object_keys import split_uri
from foldtune.settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


# All errors of boto3; callers of boto3 wrap them in an InfrastructureError.
AWS_ERRORS = (Boto3Error, BotoCoreError, ClientError)


class ObjectStore(Protocol):
    """An object store with conditional writes. Keys are relative to one bucket."""

    bucket: str

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

    def uri(self, key: str) -> str:
        """The object's ``s3://`` address."""
        return f"s3://{self.bucket}/{key}"

    def key(self, uri: str) -> str:
        """The key of an address in this bucket.

        Raises:
            ValueError: the address is in another bucket.
        """
        bucket, key = split_uri(uri)
        if bucket != self.bucket:
            msg = f"{uri} is not in the bucket {self.bucket!r}"
            raise ValueError(msg)
        return key


class S3ObjectStore(ObjectStore):
    """Amazon S3, or any server with its API and conditional writes.

    Every method raises ``ObjectStoreError`` if the store does not complete the request, after boto3's own retries.
    """

    def __init__(self, settings: S3Settings) -> None:
        self.bucket = settings.bucket
        secret = settings.secret_access_key
        config = Config(
            retries={"mode": "standard", "max_attempts": 5},
            connect_timeout=5,
            read_timeout=60,
            # A self-hosted server has one host name for all buckets.
            s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
        )
        try:
            self._client: S3Client = boto3.client(
                "s3",
                endpoint_url=settings.endpoint_url,
                region_name=settings.region,
                aws_access_key_id=settings.access_key_id,
                aws_secret_access_key=secret.get_secret_value() if secret else None,
                config=config,
            )
        except (*AWS_ERRORS, ValueError) as error:
            # An unknown AWS_PROFILE, or an endpoint that is not a URL.
            raise InvalidSettingsError(f"s3 or AWS_…: {error}") from error

    def put(self, key: str, content: bytes) -> None:
        with self._wrapped_errors(key):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        # 412: the object exists. 409: a concurrent write of it is in progress.
        return self._put_on_condition(key, content, {409, 412}, IfNoneMatch="*")

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        with self._wrapped_errors(key, may_be_missing=True):
            response = self._client.get_object(Bucket=self.bucket, Key=key)
            return response["Body"].read(), response["ETag"]

    def put_if_match(self, key: str, content: bytes, etag: str) -> bool:
        # 404: the object was deleted in the meantime.
        return self._put_on_condition(key, content, {404, 409, 412}, IfMatch=etag)

    def put_file(self, key: str, path: Path) -> None:
        with self._wrapped_errors(key):
            self._client.upload_file(str(path), self.bucket, key)

    def get(self, key: str) -> bytes:
        return self.get_with_etag(key)[0]

    def exists(self, key: str) -> bool:
        try:
            with self._wrapped_errors(key, may_be_missing=True):
                self._client.head_object(Bucket=self.bucket, Key=key)
        except ObjectMissingError:
            return False
        return True

    def get_file(self, key: str, path: Path) -> None:
        with self._wrapped_errors(key, may_be_missing=True):
            self._client.download_file(self.bucket, key, str(path))

    def list(self, prefix: str) -> builtins.list[str]:
        with self._wrapped_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def delete(self, key: str) -> None:
        with self._wrapped_errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def _put_on_condition(self, key: str, content: bytes, failed: set[int], **condition: Any) -> bool:
        """Whether the object was written; ``failed`` are the HTTP statuses of a condition that is not met."""
        with self._wrapped_errors(key):
            try:
                self._client.put_object(Bucket=self.bucket, Key=key, Body=content, **condition)
            except ClientError as error:
                if _status(error) in failed:
                    return False
                raise
        return True

    @contextmanager
    def _wrapped_errors(self, key: str, *, may_be_missing: bool = False) -> Iterator[None]:
        try:
            yield
        except AWS_ERRORS as error:
            if may_be_missing and isinstance(error, ClientError) and _status(error) == 404:
                raise ObjectMissingError(self.uri(key)) from error
            raise ObjectStoreError(self.uri(key), error) from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
