"""The layout of the bucket: every object key that foldtune reads or writes.

==========================================  ==============================================================
``snapshots/REQUEST/``                      Parquet files and ``manifest.json`` of a request's snapshot
``jobs/REQUEST/``                           ``job.json`` and the ledger of its attempts (``launchers.ledger``)
``checkpoints/REQUEST/VERSION/``            the checkpoint of a running training
``models/MODEL/VERSION/``                   a trained model; ``manifest.json`` is written last
``statuses/REQUEST_ID.json``                the newest status of a request, for readers without Kafka
``spend/MODEL/YYYY-MM.json``                cost of the model's trainings on AWS Batch, by month
==========================================  ==============================================================

``REQUEST`` is the ``key_segment`` of model name and request id, ``MODEL`` that of the model name.
"""

import hashlib
import re

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def key_segment(*names: str) -> str:
    """One segment of an object key from untrusted names: a readable slug and a digest.

    Distinct lists of names have distinct segments, and no name can escape its prefix.
    """
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    readable = _UNSAFE.sub("-", names[-1]).strip("-")[:40]
    return f"{readable}-{digest}" if readable else digest


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://BUCKET/KEY``.

    Raises:
        ValueError: the URI has another form.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key:
        msg = f"not an s3://BUCKET/KEY address: {uri!r}"
        raise ValueError(msg)
    return bucket, key


def request_segment(model: str, request_id: str) -> str:
    """The segment of a request, in the keys of its snapshot, job and checkpoints."""
    return key_segment(model, request_id)


def snapshot_prefix(model: str, request_id: str) -> str:
    """The prefix of a request's snapshot."""
    return f"snapshots/{request_segment(model, request_id)}"


def job_prefix(model: str, request_id: str) -> str:
    """The prefix of a request's job and of its ledger."""
    return f"jobs/{request_segment(model, request_id)}"


def attempt_key(model: str, request_id: str, attempt: int, name: str) -> str:
    """A file of an attempt in the ledger."""
    return f"{job_prefix(model, request_id)}/attempt-{attempt}.{name}"


def checkpoint_key(model: str, request_id: str, version: str) -> str:
    """The checkpoint of a training."""
    return f"checkpoints/{request_segment(model, request_id)}/{version}/state.safetensors"


def model_prefix(model: str, version: str) -> str:
    """The prefix of a model version."""
    return f"models/{key_segment(model)}/{version}"


def status_key(request_id: str) -> str:
    """The newest status of a request."""
    return f"statuses/{key_segment(request_id)}.json"


def spend_key(model: str, month: str) -> str:
    """The cost of a model's trainings in a month (``YYYY-MM``)."""
    return f"spend/{key_segment(model)}/{month}.json"
