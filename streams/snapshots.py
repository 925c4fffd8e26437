"""Exports what a request selects of one partition to Parquet on the object store."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.objects import ObjectStore, safe_segment
from infra.settings import Strengths
from streams.events import FineTuneRequested, FolderCount, SnapshotCommand, SnapshotFile, SnapshotPart, TopicOffset
from streams.fold import FolderSet
from streams.labels import Example, Passage, label
from streams.snapshot_format import DOCUMENTS, EXAMPLES
from streams.training_sets import PartitionView


def snapshot_prefix(model: str, request_id: str) -> str:
    """Where a request's snapshot lies."""
    return f"snapshots/{safe_segment(model, request_id)}"


def export(
    command: SnapshotCommand,
    view: PartitionView,
    offsets: tuple[TopicOffset, ...],
    store: ObjectStore,
    strengths: Strengths,
) -> SnapshotPart:
    """Write the partition's share, folder by folder: memory is bounded by the largest folder, not by the partition.

    The same view gives the same bytes, and the objects are named by their digest: an export that is repeated, or two
    that run at once, cannot spoil each other.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the object store did not take the files.
    """
    request = command.request
    started = time.perf_counter()
    left_out: Counter[str] = Counter()
    agents: set[str] = set()
    counts = []
    with TemporaryDirectory(prefix="foldtune-snapshot-") as folder:
        examples = _Writer(Path(folder) / "examples.parquet", EXAMPLES)
        documents = _Writer(Path(folder) / "documents.parquet", DOCUMENTS)
        with examples, documents:
            for folder_id in view.folders(request.data.folders):
                content = view.folder(folder_id, command.issued_at)
                agents.update(judged.log.agent_id for judged in content.logs)
                rows = [_example_row(example) for example in _selected(content, request, strengths, left_out)]
                examples.write(rows)
                documents.write([_document_row(folder_id, document) for document in content.documents])
                positives = sum(row["positive"] is not None for row in rows)
                counts.append(FolderCount(folder_id=folder_id, examples=positives, documents=len(content.documents)))
        prefix = snapshot_prefix(request.model, request.request_id)
        written = time.perf_counter()
        files = (
            examples.upload(store, f"{prefix}/examples-{command.partition:05d}"),
            documents.upload(store, f"{prefix}/documents-{command.partition:05d}"),
        )
        ended = time.perf_counter()
        return SnapshotPart(
            request_id=request.request_id,
            model=request.model,
            partition=command.partition,
            examples=files[0],
            documents=files[1],
            folders=tuple(counts),
            agents=tuple(sorted(agents & set(request.data.agents or ()))),
            offsets=offsets,
            left_out=dict(sorted(left_out.items())),
            seconds=ended - started,
            store_seconds=ended - written,
        )


def _selected(
    content: FolderSet, request: FineTuneRequested, strengths: Strengths, left_out: Counter[str]
) -> Iterator[Example]:
    for judged in content.logs:
        if not request.data.in_range(judged.log.occurred_at):
            left_out["outside the date range"] += 1
        elif request.data.agents is not None and judged.log.agent_id not in request.data.agents:
            left_out["another agent"] += 1
        elif (example := label(judged, strengths)) is None:
            left_out["no label"] += 1
        else:
            yield example


def _example_row(example: Example) -> dict[str, Any]:
    log = example.log
    return {
        "log_id": log.log_id,
        "occurred_at": log.occurred_at,
        "folder_id": log.folder_id,
        "agent_id": log.agent_id,
        "conversation_id": log.conversation_id,
        "question": log.question,
        "positive": _passage_row(example.positive) if example.positive else None,
        "label": example.label.value,
        "strength": example.strength,
        "negatives": [_passage_row(passage) for passage in example.negatives],
    }


def _passage_row(passage: Passage) -> dict[str, str | None]:
    return {"folder_id": passage.folder_id, "document_id": passage.document_id, "text": passage.text}


def _document_row(folder_id: str, document: Any) -> dict[str, str]:
    return {
        "folder_id": folder_id,
        "document_id": document.document_id,
        "title": document.title,
        "text": document.text,
    }


class _Writer:
    """One Parquet file, a row group a folder."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._rows = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))
            self._rows += len(rows)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def upload(self, store: ObjectStore, name: str) -> SnapshotFile:
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        key = f"{name}-{digest[:16]}.parquet"
        store.put_file(key, self._path)
        return SnapshotFile(uri=store.uri(key), sha256=digest, rows=self._rows)
