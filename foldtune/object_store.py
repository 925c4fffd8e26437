"""The object store: one small port, and S3 behind it (``foldtune.testing`` has one in memory)."""

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from foldtune.errors import ObjectMissingError, ObjectStoreError
from foldtune.object_keys import split_uri
from foldtune.settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


# All that boto3 raises; whoever calls it wraps these in an InfrastructureError.
AWS_ERRORS = (Boto3Error, BotoCoreError, ClientError)


class ObjectStore(Protocol):
    """What foldtune needs of an object store. Keys are relative to one bucket."""

    bucket: str

    def put(self, key: str, content: bytes) -> None:
        """Write an object, whole or not at all."""

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; of several callers at most one gets ``True``.

        A caller whose write succeeded but whose answer was lost gets ``False`` on the retry: put something into the
        content by which you know your own.
        """

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """An object's bytes, and the ETag of this version for ``put_if_match``; raises like ``get``."""

    def put_if_match(self, key: str, content: bytes, etag: str) -> bool:
        """Overwrite the version with this ETag; of several callers at most one gets ``True``.

        A caller whose answer was lost gets ``False`` on the retry, as with ``put_if_absent``.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file, in parts where it is large."""

    def get(self, key: str) -> bytes:
        """An object's bytes.

        Raises:
            ObjectMissingError: there is none.
        """

    def get_file(self, key: str, path: Path) -> None:
        """Download an object to a file; raises like ``get``."""

    def list(self, prefix: str) -> builtins.list[str]:
        """The keys under a prefix, sorted."""

    def delete(self, key: str) -> None:
        """Delete an object; without effect where there is none."""

    def uri(self, key: str) -> str:
        """The object's ``s3://`` address."""
        return f"s3://{self.bucket}/{key}"

    def key(self, uri: str) -> str:
        """The key of an address in this bucket.

        Raises:
            ValueError: it lies in another bucket.
        """
        bucket, key = split_uri(uri)
        if bucket != self.bucket:
            msg = f"{uri} is not in the bucket {self.bucket!r}"
            raise ValueError(msg)
        return key


class S3ObjectStore(ObjectStore):
    """Amazon S3, or any server that speaks its protocol and honours conditional writes.

    Every method raises ``ObjectStoreError`` if the store does not complete the request; boto3 has retried by then.
    """

    def __init__(self, settings: S3Settings) -> None:
        self.bucket = settings.bucket
        secret = settings.secret_access_key
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                retries={"mode": "standard", "max_attempts": 5},
                connect_timeout=5,
                read_timeout=60,
                # A self-hosted server has one host name, not one for each bucket.
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
            ),
        )

    def put(self, key: str, content: bytes) -> None:
        with self._errors(key):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        # 412: it exists. 409: another writer is writing it at this moment, and will have been first.
        with self._errors(key), self._refused(409, 412) as refused:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=content, IfNoneMatch="*")
        return not refused

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        with self._errors(key, may_be_missing=True):
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            return answer["Body"].read(), answer["ETag"]

    def put_if_match(self, key: str, content: bytes, etag: str) -> bool:
        # 404: it was deleted meanwhile.
        with self._errors(key), self._refused(404, 409, 412) as refused:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=content, IfMatch=etag)
        return not refused

    def put_file(self, key: str, path: Path) -> None:
        with self._errors(key):
            self._client.upload_file(str(path), self.bucket, key)

    def get(self, key: str) -> bytes:
        return self.get_with_etag(key)[0]

    def get_file(self, key: str, path: Path) -> None:
        with self._errors(key, may_be_missing=True):
            self._client.download_file(self.bucket, key, str(path))

    def list(self, prefix: str) -> builtins.list[str]:
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    @contextmanager
    def _errors(self, key: str, *, may_be_missing: bool = False) -> Iterator[None]:
        try:
            yield
        except AWS_ERRORS as error:
            if may_be_missing and _status(error) == 404:
                raise ObjectMissingError(self.uri(key)) from error
            raise ObjectStoreError(self.uri(key), error) from error

    @contextmanager
    def _refused(self, *statuses: int) -> Iterator[builtins.list[int]]:
        """A list that holds the HTTP status if the store refused with one of ``statuses``."""
        refused: builtins.list[int] = []
        try:
            yield refused
        except ClientError as error:
            if (status := _status(error)) not in statuses:
                raise
            refused.append(status)


def _status(error: Exception) -> int:
    return (
        int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if isinstance(error, ClientError)
        else 0
    )
