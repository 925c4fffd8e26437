"""The layout of the bucket: every object key that foldtune reads or writes."""

import hashlib
import re

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def safe_segment(*names: str) -> str:
    """One object key segment for names that came from outside: readable in front, unique by its digest.

    Two different lists of names never share a segment, and no name can climb out of its prefix.
    """
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    readable = _UNSAFE.sub("-", names[-1]).strip("-")[:40]
    return f"{readable}-{digest}" if readable else digest


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://BUCKET/KEY``.

    Raises:
        ValueError: it is no such URI.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key:
        msg = f"not an s3://BUCKET/KEY address: {uri!r}"
        raise ValueError(msg)
    return bucket, key


def snapshot_prefix(model: str, request_id: str) -> str:
    """Where a request's snapshot lies."""
    return f"snapshots/{safe_segment(model, request_id)}"
