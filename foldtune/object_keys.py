"""The layout of the bucket: every object key that foldtune reads or writes.

==========================================  ==============================================================
``snapshots/REQUEST/``                      Parquet files and ``manifest.json`` of a request's snapshot
``jobs/REQUEST/``                           ``job.json`` and the ledger of its attempts (``launchers.ledger``)
``checkpoints/REQUEST/VERSION/``            the state of a training between two steps
``models/MODEL/VERSION/``                   a trained model, ``manifest.json`` last
``statuses/REQUEST_ID.json``                the newest status of a request, for readers without Kafka
``spend/MODEL/YYYY-MM.json``                what trainings on AWS Batch have cost
==========================================  ==============================================================

``REQUEST`` is the segment of a model name and request id, ``MODEL`` that of a model name.
"""

import hashlib
import re

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def key_segment(*names: str) -> str:
    """One object key segment for untrusted names: a readable slug and a digest.

    Distinct lists of names never share a segment, and no name can leave its prefix.
    """
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    readable = _UNSAFE.sub("-", names[-1]).strip("-")[:40]
    return f"{readable}-{digest}" if readable else digest


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://BUCKET/KEY``.

    Raises:
        ValueError: not such a URI.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key:
        msg = f"not an s3://BUCKET/KEY address: {uri!r}"
        raise ValueError(msg)
    return bucket, key


def request_segment(model: str, request_id: str) -> str:
    """The segment of a request, in the prefixes of its snapshot, its job and its checkpoints."""
    return key_segment(model, request_id)


def snapshot_prefix(model: str, request_id: str) -> str:
    """The prefix of a request's snapshot."""
    return f"snapshots/{request_segment(model, request_id)}"


def job_prefix(model: str, request_id: str) -> str:
    """The prefix of a request's job and of the ledger of its attempts."""
    return f"jobs/{request_segment(model, request_id)}"


def attempt_key(model: str, request_id: str, attempt: int, name: str) -> str:
    """One file of the ledger: ``name`` of an attempt."""
    return f"{job_prefix(model, request_id)}/attempt-{attempt}.{name}"


def checkpoint_key(model: str, request_id: str, version: str) -> str:
    """The checkpoint of a training."""
    return f"checkpoints/{request_segment(model, request_id)}/{version}/state.safetensors"


def model_prefix(model: str, version: str) -> str:
    """The prefix of a version of a model."""
    return f"models/{key_segment(model)}/{version}"


def status_key(request_id: str) -> str:
    """The newest status of a request."""
    return f"statuses/{key_segment(request_id)}.json"


def spend_key(model: str, month: str) -> str:
    """What a model's trainings have cost in a month (``YYYY-MM``)."""
    return f"spend/{key_segment(model)}/{month}.json"
