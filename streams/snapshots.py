"""Exports what a request selects of one partition to Parquet on the object store."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from infra.objects import ObjectStore, safe_segment
from infra.settings import SetLimits, Strengths
from streams.erasures import Erasures
from streams.events import FineTuneRequested, FolderCount, SnapshotCommand, SnapshotFile, SnapshotPart, TopicOffset
from streams.fold import FolderSet, fold
from streams.labels import Example, Passage, label
from streams.segments import unpack
from streams.snapshot_format import DOCUMENTS, EXAMPLES
from streams.training_sets import PartitionView

T = TypeVar("T")


def snapshot_prefix(model: str, request_id: str) -> str:
    """Where a request's snapshot lies."""
    return f"snapshots/{safe_segment(model, request_id)}"


class Compute(Protocol):
    """Calls a function, in this process or in another, and returns what it does."""

    def __call__(self, function: Callable[[], T]) -> T:
        """Raises ``OSError`` where the other process is gone."""


def here(function: Callable[[], T]) -> T:
    """Calls it in this process."""
    return function()


def export(
    command: SnapshotCommand,
    view: PartitionView,
    offsets: tuple[TopicOffset, ...],
    store: ObjectStore,
    strengths: Strengths,
    *,
    compute: Compute = here,
) -> SnapshotPart:
    """Write the partition's share, folder by folder: memory is bounded by the largest folder, not by the partition.

    The same view gives the same bytes, and the objects are named by their digest: an export that is repeated, or two
    that run at once, cannot spoil each other.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the object store did not take the files.
        OSError: ``compute`` could not.
    """
    request = command.request
    started = time.perf_counter()
    left_out: Counter[str] = Counter()
    agents: set[str] = set()
    counts = []
    selected = view.folders(request.data.folders)
    erasures = view.erasures()
    ends = {offset.topic: offset.offset for offset in offsets}
    with TemporaryDirectory(prefix="foldtune-snapshot-") as folder:
        examples = _Writer(Path(folder) / "examples.parquet", EXAMPLES)
        documents = _Writer(Path(folder) / "documents.parquet", DOCUMENTS)
        with examples, documents:
            for folder_id in selected:
                contents = [
                    (segment.topic_label, content) for segment, content in view.contents(view.segments[folder_id])
                ]
                limits = view.limits.of(folder_id)
                found = compute(
                    partial(
                        folder_rows,
                        command,
                        folder_id,
                        contents,
                        ends=ends,
                        erasures=erasures,
                        limits=limits,
                        strengths=strengths,
                    )
                )
                examples.write(found.examples)
                documents.write(found.documents)
                agents |= found.agents
                left_out += found.left_out
                counts.append(found.count)
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
            # A message has room for the names that a request had room for, not for all there are.
            folders=tuple(counts) if request.data.folders else (),
            folder_count=len(counts),
            positives=sum(count.examples for count in counts),
            agents=tuple(sorted(agents & set(request.data.agents or ()))),
            offsets=offsets,
            left_out=dict(sorted(left_out.items())),
            seconds=ended - started,
            store_seconds=ended - written,
        )


@dataclass(frozen=True)
class FolderRows:
    """A folder's share of a snapshot; the rows as record batches in Arrow's stream format."""

    examples: bytes
    documents: bytes
    count: FolderCount
    agents: set[str]
    left_out: Counter[str]


def folder_rows(
    command: SnapshotCommand,
    folder_id: str,
    contents: list[tuple[str, bytes]],
    *,
    ends: dict[str, int],
    erasures: Erasures,
    limits: SetLimits,
    strengths: Strengths,
) -> FolderRows:
    """Fold the segments of a folder, each with its topic, and label what is selected of it.

    What came to offsets from ``ends`` on is left out: the view may hold a little more than was known when it was made.
    """
    records = (
        record for topic, content in contents for record in unpack(content) if record.offset < ends.get(topic, 1 << 63)
    )
    content = fold(folder_id, records, erasures, limits, command.issued_at)
    left_out: Counter[str] = Counter()
    rows = [_example_row(example) for example in _selected(content, command.request, strengths, left_out)]
    documents = [_document_row(folder_id, document) for document in content.documents]
    positives = sum(row["positive"] is not None for row in rows)
    return FolderRows(
        examples=_stream(rows, EXAMPLES),
        documents=_stream(documents, DOCUMENTS),
        count=FolderCount(folder_id=folder_id, examples=positives, documents=len(documents)),
        agents={judged.log.agent_id for judged in content.logs},
        left_out=left_out,
    )


def _stream(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return bytes(sink.getvalue())


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
        self._rows = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, stream: bytes) -> None:
        rows = pa.ipc.open_stream(stream).read_all()
        if len(rows):
            self._writer.write_table(rows)
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
