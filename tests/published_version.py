"""A model version on the object store, as a training publishes it."""

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foldtune.events import ManifestFile, ModelManifest, ModelReady
from foldtune.object_keys import manifest_key, model_prefix, run_prefix
from foldtune.object_store import ObjectStore
from tests.support import model_ready

METRICS = {
    "release": "0.2.0",
    "labels": {"cited": 71, "liked": 29},
    "logs": ["2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"],
    "after": {},
    "folders": {"pricing": {"questions": 24, "before": {"ndcg_at_10": 0.5}, "after": {"ndcg_at_10": 0.42}}},
}
_FOUND = [{"folder_id": "f", "document_id": f"d{number}", "score": 0.5 - number / 10} for number in range(5)]
ROWS = [
    {
        "question": f"question {number}?",
        "gain": gain,
        "rank_before": 1,
        "rank_after": 2,
        "before": _FOUND,
        "after": _FOUND[::-1],
    }
    for number, gain in enumerate((0.5, -0.25, 0.0))
]


def publish_version(store: ObjectStore, model: str, version: str, **fields: Any) -> ModelReady:
    """A version on the object store; its event."""
    prefix = model_prefix(model, version)
    run = run_prefix(prefix, "run")
    files = {"README.md": b"# Card", "metrics.json": json.dumps(METRICS).encode(), "1_Pooling/config.json": b"{}"}
    for path, content in files.items():
        store.put(f"{run}/{path}", content)
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    store.put(f"{run}/evaluation.parquet", table.getvalue())
    fields |= {"model": model, "version": version, "model_uri": store.uri(run), "request_id": f"r-{version}"}
    ready = model_ready(**fields)
    manifest = ModelManifest(
        files=tuple(
            ManifestFile(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
            for path, content in files.items()
        )
    ).model_dump(mode="json") | {"ready": ready.model_dump(mode="json", exclude={"manifest_sha256"})}
    content = json.dumps(manifest).encode()
    store.put(manifest_key(prefix), content)
    return ready.model_copy(update={"manifest_sha256": hashlib.sha256(content).hexdigest()})
