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

from foldtune.events import FolderCount, SnapshotCommand, SnapshotFile, SnapshotPart, TopicOffset
from foldtune.object_keys import snapshot_prefix
from foldtune.object_store import ObjectStore
from foldtune.settings import LabelWeights, SetLimits
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from streams.snapshots.labels import Example, Passage, label
from streams.training_sets.decoding import Record
from streams.training_sets.erasures import Erasures
from streams.training_sets.fold import FolderSet, fold
from streams.training_sets.segments import unpack
from streams.training_sets.store import PartitionView

T = TypeVar("T")
# Segments handed over at a time: some megabytes.
_AT_ONCE = 16


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
    strengths: LabelWeights,
    *,
    compute: Compute = here,
) -> SnapshotPart:
    """Write the partition's share, folder by folder: memory is bounded by the largest folder, not by the partition.

    This side reads what the view holds and puts the files on the object store; all else is done where ``compute`` does
    it.

    The same view gives the same bytes, and the objects are named by their digest: an export that is repeated, or two
    that run at once, cannot spoil each other.

    Raises:
        ObjectStoreError: the object store did not take the files.
        OSError: ``compute`` could not.
    """
    request = command.request
    started = time.perf_counter()
    ends = {offset.topic: offset.offset for offset in offsets}
    with TemporaryDirectory(prefix="foldtune-snapshot-") as folder:
        compute(partial(begin, folder, Selection(command, view.erasures(), strengths, ends)))
        try:
            for folder_id in view.folders(request.data.folders):
                segments = view.segments[folder_id]
                for start in range(0, len(segments), _AT_ONCE):
                    found = view.contents(segments[start : start + _AT_ONCE])
                    compute(partial(add, folder, [(one.topic_label, content) for one, content in found]))
                compute(partial(end_folder, folder, folder_id, view.limits.of(folder_id)))
            share = compute(partial(end, folder))
        finally:
            compute(partial(forget, folder))
        prefix = snapshot_prefix(request.model, request.request_id)
        written = time.perf_counter()
        files = (
            _upload(share.examples, store, f"{prefix}/examples-{command.partition:05d}"),
            _upload(share.documents, store, f"{prefix}/documents-{command.partition:05d}"),
        )
        ended = time.perf_counter()
        return SnapshotPart(
            request_id=request.request_id,
            model=request.model,
            partition=command.partition,
            examples=files[0],
            documents=files[1],
            # A message has room for the names that a request had room for, not for all there are.
            folders=tuple(share.counts) if request.data.folders else (),
            folder_count=len(share.counts),
            positives=sum(count.examples for count in share.counts),
            agents=tuple(sorted(share.agents & set(request.data.agents or ()))),
            offsets=offsets,
            left_out=dict(sorted(share.left_out.items())),
            seconds=ended - started,
            store_seconds=ended - written,
        )


def _upload(file: "WrittenFile", store: ObjectStore, name: str) -> SnapshotFile:
    key = f"{name}-{file.sha256[:16]}.parquet"
    store.put_file(key, file.path)
    return SnapshotFile(uri=store.uri(key), sha256=file.sha256, rows=file.rows)


# ── What is computed, in whichever process ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Selection:
    """What is exported of a partition."""

    command: SnapshotCommand
    erasures: Erasures
    strengths: LabelWeights
    # What came to offsets from here on is left out, by topic: the view may hold a little more than was known when it
    # was made.
    ends: dict[str, int]


@dataclass(frozen=True)
class WrittenFile:
    """A finished Parquet file."""

    path: Path
    rows: int
    sha256: str


@dataclass(frozen=True)
class Share:
    """A partition's share of a snapshot, on disk."""

    examples: WrittenFile
    documents: WrittenFile
    counts: list[FolderCount]
    agents: set[str]
    left_out: Counter[str]


# The exports under way in this process, by the folder that they write to.
_under_way: dict[str, "_Export"] = {}


def begin(folder: str, selection: Selection) -> None:
    """Start an export into ``folder``."""
    _under_way[folder] = _Export(Path(folder), selection)


def add(folder: str, contents: list[tuple[str, bytes]]) -> None:
    """Read segments of the folder that is at work, each with its topic; raises like ``end``."""
    _known(folder).add(contents)


def end_folder(folder: str, folder_id: str, limits: SetLimits) -> None:
    """Fold what was read, and write what is selected of it; raises like ``end``."""
    _known(folder).end_folder(folder_id, limits)


def end(folder: str) -> Share:
    """Finish the files.

    Raises:
        OSError: the export was begun by a process that is no more.
    """
    return _known(folder).end()


def forget(folder: str) -> None:
    """Have nothing more to do with an export, finished or not."""
    _under_way.pop(folder, None)


def _known(folder: str) -> "_Export":
    try:
        return _under_way[folder]
    except KeyError:
        raise OSError("the exporting process was started anew") from None


class _Export:
    def __init__(self, folder: Path, selection: Selection) -> None:
        self._selection = selection
        self._examples = _Writer(folder / "examples.parquet", EXAMPLES)
        self._documents = _Writer(folder / "documents.parquet", DOCUMENTS)
        self._records: list[Record] = []
        self._counts: list[FolderCount] = []
        self._agents: set[str] = set()
        self._left_out: Counter[str] = Counter()

    def add(self, contents: list[tuple[str, bytes]]) -> None:
        for topic, content in contents:
            end = self._selection.ends.get(topic, 1 << 63)
            self._records += [record for record in unpack(content) if record.offset < end]

    def end_folder(self, folder_id: str, limits: SetLimits) -> None:
        chosen = self._selection
        content = fold(folder_id, self._records, chosen.erasures, limits, chosen.command.issued_at)
        self._records = []
        rows = [_example_row(example) for example in self._examples_of(content)]
        self._examples.write(rows)
        self._documents.write([_document_row(folder_id, document) for document in content.documents])
        positives = sum(row["positive"] is not None for row in rows)
        self._agents |= {judged.log.agent_id for judged in content.logs}
        self._counts.append(FolderCount(folder_id=folder_id, examples=positives, documents=len(content.documents)))

    def end(self) -> Share:
        return Share(self._examples.close(), self._documents.close(), self._counts, self._agents, self._left_out)

    def _examples_of(self, content: FolderSet) -> Iterator[Example]:
        selected = self._selection.command.request.data
        for judged in content.logs:
            if not selected.in_range(judged.log.occurred_at):
                self._left_out["outside the date range"] += 1
            elif selected.agents is not None and judged.log.agent_id not in selected.agents:
                self._left_out["another agent"] += 1
            elif (example := label(judged, self._selection.strengths)) is None:
                self._left_out["no label"] += 1
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

    def close(self) -> WrittenFile:
        self._writer.close()
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return WrittenFile(self._path, self._rows, digest)
