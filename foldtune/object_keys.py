"""The layout of the bucket: every object key that foldtune reads or writes, below ``s3.prefix``.

===================================================  =========================================================
``snapshots/REQUEST/examples-PARTITION-X.parquet``   the examples of one partition in a request's snapshot
``snapshots/REQUEST/documents-PARTITION-X.parquet``  their documents
``snapshots/REQUEST/other-…-PARTITION-X.parquet``    ``examples`` and ``documents`` of other folders: a sample
``snapshots/REQUEST/manifest.json``                  the snapshot's files; ``manifest-X.json`` of a second snapshot
``jobs/REQUEST/job.json``                            the job, as all of its attempts read it
``jobs/REQUEST/cancelled``                           empty; exists if the request was cancelled
``jobs/REQUEST/attempt-N.NAME``                      the ledger of the job's attempts (``launchers.ledger``)
``checkpoints/REQUEST/VERSION/state.safetensors``    the checkpoint of a running training
``models/MODEL/VERSION/runs/RUN/``                   the files and the manifest of a training of this version
``models/MODEL/VERSION/runs/RUN/evaluation.parquet`` its held-out questions; not in the manifest, so not deployed
``models/MODEL/VERSION/runs/RUN/other_folders.json`` its metrics by folder that the request does not name; the same
``models/MODEL/VERSION/manifest.json``               the manifest of the one that was published, written last
``models/MODEL/latest.json``                         the newest promoted version of the model
``statuses/REQUEST_ID.json``                         the newest status of each model's request under one id, for
                                                     readers without Kafka
``checks/conditional-writes``                        empty; written to see whether the store honours conditions
``spend/MODEL/YYYY-MM.json``                         cost of the model's trainings on AWS Batch, by month
===================================================  =========================================================

``REQUEST`` is the ``key_segment`` of model name and request id, ``REQUEST_ID`` that of the request id alone, and
``MODEL`` that of the model name. ``VERSION`` is the job's version, ``RUN`` is random, ``PARTITION`` has five digits,
and ``X`` is the start of the file's SHA-256. ``NAME`` is ``submission.json``, ``takeover-K.json``, ``heartbeat``,
``outcome.json``, ``log-url`` or ``log``, and on AWS Batch also ``batch.json`` or ``stopping.json``.
"""

import hashlib
import re
from typing import Literal

# The files of a snapshot.
SnapshotKind = Literal["examples", "documents", "other-examples", "other-documents"]
MANIFEST = "manifest.json"
# Written to see whether the store honours conditions.
CHECK_KEY = "checks/conditional-writes"
CHECKPOINT = "state.safetensors"
EVALUATION = "evaluation.parquet"
OTHER_FOLDERS = "other_folders.json"
# Beside a model's files, and not in its manifest: whoever serves a model does not get them.
FOR_OPERATORS = frozenset({EVALUATION, OTHER_FOLDERS})

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


def snapshot_file_key(model: str, request_id: str, kind: SnapshotKind, partition: int, sha256: str) -> str:
    """One partition's Parquet file in a snapshot, named by its digest."""
    return f"{snapshot_prefix(model, request_id)}/{kind}-{partition:05d}-{sha256[:16]}.parquet"


def snapshot_manifest_key(model: str, request_id: str, sha256: str | None = None) -> str:
    """The manifest of a snapshot; that of a second snapshot of one request has its digest in the name."""
    name = MANIFEST if sha256 is None else f"manifest-{sha256[:16]}.json"
    return f"{snapshot_prefix(model, request_id)}/{name}"


def job_prefix(model: str, request_id: str) -> str:
    """The prefix of a request's job and of its ledger."""
    return f"jobs/{request_segment(model, request_id)}"


def job_key(model: str, request_id: str) -> str:
    """The job of a request."""
    return f"{job_prefix(model, request_id)}/job.json"


def cancelled_key(model: str, request_id: str) -> str:
    """Exists if the request was cancelled."""
    return f"{job_prefix(model, request_id)}/cancelled"


def attempts_prefix(model: str, request_id: str) -> str:
    """The prefix of the ledger's files of all attempts."""
    return f"{job_prefix(model, request_id)}/attempt-"


def attempt_key(model: str, request_id: str, attempt: int, name: str) -> str:
    """A file of an attempt in the ledger."""
    return f"{attempts_prefix(model, request_id)}{attempt}.{name}"


def checkpoint_key(model: str, request_id: str, version: str) -> str:
    """The checkpoint of a training."""
    return f"checkpoints/{request_segment(model, request_id)}/{version}/{CHECKPOINT}"


def model_prefix(model: str, version: str) -> str:
    """The prefix of a model version."""
    return f"models/{key_segment(model)}/{version}"


def manifest_key(prefix: str) -> str:
    """The manifest of the model version under a prefix."""
    return f"{prefix}/{MANIFEST}"


def run_prefix(prefix: str, run: str) -> str:
    """The prefix of one training's files, below that of its model version."""
    return f"{prefix}/runs/{run}"


def latest_key(prefix: str) -> str:
    """The pointer to the newest promoted version, beside the prefix of any version of the model."""
    return f"{prefix.rpartition('/')[0]}/latest.json"


def status_key(request_id: str) -> str:
    """The newest status of each model's request under one id."""
    return f"statuses/{key_segment(request_id)}.json"


def spend_key(model: str, month: str) -> str:
    """The cost of a model's trainings in a month (``YYYY-MM``)."""
    return f"spend/{key_segment(model)}/{month}.json"
