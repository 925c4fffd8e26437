"""The object store: one small port, S3 behind it, and the fake that ships for tests."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from foldtune.errors import ObjectMissingError
from foldtune.object_keys import split_uri
from foldtune.settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


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

    def tagged(self, key: str) -> tuple[bytes, str]:
        """An object's bytes, and the tag by which ``replace`` knows this version of it; raises like ``get``."""

    def replace(self, key: str, content: bytes, tag: str) -> bool:
        """Write over the version with this tag; of several callers at most one gets ``True``.

        Whoever's answer was lost gets ``False``, as with ``put_if_absent``.
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

    def list(self, prefix: str) -> list[str]:
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
    """Amazon S3, or any server that speaks its protocol and honours conditional writes."""

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
                # A server of one's own has one host name, not one a bucket.
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
            ),
        )

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        try:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            # 412: it is there. 409: another writer is at it this very moment, and will have been first.
            if _status(error) in {409, 412}:
                return False
            raise
        return True

    def tagged(self, key: str) -> tuple[bytes, str]:
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            raise self._missing(key, error) from error
        return answer["Body"].read(), answer["ETag"]

    def replace(self, key: str, content: bytes, tag: str) -> bool:
        try:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=content, IfMatch=tag)
        except ClientError as error:
            # 404: it was deleted meanwhile.
            if _status(error) in {404, 409, 412}:
                return False
            raise
        return True

    def put_file(self, key: str, path: Path) -> None:
        self._client.upload_file(str(path), self.bucket, key)

    def get(self, key: str) -> bytes:
        try:
            return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except ClientError as error:
            raise self._missing(key, error) from error

    def get_file(self, key: str, path: Path) -> None:
        try:
            self._client.download_file(self.bucket, key, str(path))
        except ClientError as error:
            raise self._missing(key, error) from error

    def list(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.bucket, Key=key)

    def _missing(self, key: str, error: ClientError) -> Exception:
        return ObjectMissingError(self.uri(key)) if _status(error) == 404 else error


def _status(error: ClientError) -> int | None:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
