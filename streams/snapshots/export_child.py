"""The part of an export that computes: decodes and folds records, selects and labels examples, writes Parquet files.

Runs in the export process. Callers in other processes can refer to functions but not to objects, so exports in progress
are held here, keyed by their output directory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foldtune.digests import file_sha256
from foldtune.events import FolderCount, SnapshotCommand
from foldtune.pairs import sampling_order
from foldtune.settings import LabelWeights, SetLimits
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from streams.snapshots.labels import Example, Passage, label, without_deleted
from streams.snapshots.selection import Tally, select
from streams.training_sets.erasures import Erasures
from streams.training_sets.fold import FolderSet, fold
from streams.training_sets.segments import unpack
from streams.training_sets.state_events import DocumentUpserted, StateRecord

# The most of the sample of a folder that the request does not name; the bytes are those of questions, and of documents.
# A fifth of the questions can be measured on: trainings hold these out.
SAMPLE_QUESTIONS, SAMPLE_DOCUMENTS, SAMPLE_BYTES = 200, 400, 1024**2


@dataclass(frozen=True)
class Selection:
    """What is exported of a partition."""

    command: SnapshotCommand
    erasures: Erasures
    weights: LabelWeights
    # By topic: records from this offset on are left out, since the view may be a little ahead of the stored offsets.
    next_offsets: dict[str, int]


@dataclass(frozen=True)
class WrittenFile:
    """A finished Parquet file."""

    path: Path
    rows: int
    sha256: str


@dataclass(frozen=True)
class WrittenPart:
    """A partition's part of a snapshot, on disk."""

    examples: WrittenFile
    documents: WrittenFile
    other_examples: WrittenFile
    other_documents: WrittenFile
    counts: list[FolderCount]
    agents: set[str]
    left_out: Counter[str]
    ignored: Counter[str]


_exports: dict[str, "_Export"] = {}


def begin(directory: str, selection: Selection) -> None:
    """Start an export into ``directory``."""
    _exports[directory] = _Export(Path(directory), selection)


def add_segments(directory: str, contents: list[tuple[str, bytes]]) -> None:
    """Decode segments of the current folder, given as topic label and content; raises like ``finish``."""
    _export_of(directory).add_segments(contents)


def finish_folder(directory: str, folder_id: str, limits: SetLimits) -> None:
    """Fold the segments added since the last folder and write what is selected; raises like ``finish``."""
    _export_of(directory).finish_folder(folder_id, limits)


def finish_other_folder(directory: str, folder_id: str, limits: SetLimits) -> None:
    """Like ``finish_folder``, for a sample of a folder that the request does not name."""
    _export_of(directory).finish_other_folder(folder_id, limits)


def finish(directory: str) -> WrittenPart:
    """Close the files.

    Raises:
        OSError: the export was begun in a process that has died.
    """
    return _export_of(directory).finish()


def discard(directory: str) -> None:
    """Free the memory of an export, finished or not."""
    _exports.pop(directory, None)


def _export_of(directory: str) -> "_Export":
    try:
        return _exports[directory]
    except KeyError:
        raise OSError("the export process was restarted during the export") from None


class _Export:
    def __init__(self, directory: Path, selection: Selection) -> None:
        self._selection = selection
        self._examples = _ParquetFile(directory / "examples.parquet", EXAMPLES)
        self._documents = _ParquetFile(directory / "documents.parquet", DOCUMENTS)
        self._other_examples = _ParquetFile(directory / "other-examples.parquet", EXAMPLES)
        self._other_documents = _ParquetFile(directory / "other-documents.parquet", DOCUMENTS)
        self._records: list[StateRecord] = []
        self._counts: list[FolderCount] = []
        self._agents: set[str] = set()
        self._tally = Tally()

    def add_segments(self, contents: list[tuple[str, bytes]]) -> None:
        for topic, content in contents:
            end = self._selection.next_offsets.get(topic, 1 << 63)
            self._records += [record for record in unpack(content) if record.offset < end]

    def finish_folder(self, folder_id: str, limits: SetLimits) -> None:
        folder = self._fold(folder_id, limits)
        data, weights = self._selection.command.request.data, self._selection.weights
        rows = [example_row(example) for _, example in select(folder, data, weights, self._tally)]
        self._examples.write(rows)
        self._documents.write([_document_row(folder_id, document) for document in folder.documents])
        positives = sum(row["positive"] is not None for row in rows)
        self._agents |= {judged.log.agent_id for judged in folder.logs}
        self._counts.append(FolderCount(folder_id=folder_id, examples=positives, documents=len(folder.documents)))

    def finish_other_folder(self, folder_id: str, limits: SetLimits) -> None:
        """Whatever dates and agents the request selects: its model will answer all of the folder's questions."""
        folder = self._fold(folder_id, limits)
        labelled = (label(judged, self._selection.weights) for judged in folder.logs)
        existing = (without_deleted(example, folder) for example in labelled if example)
        answered = [replace(example, negatives=()) for example in existing if example and example.positive]
        answered.sort(key=lambda example: (sampling_order(example.log.question), example.log.log_id))
        questions = answered[:SAMPLE_QUESTIONS]
        # First the documents that answer them; the others are those to be told from.
        needed = {example.positive.document_id for example in questions if example.positive}
        documents = sorted(
            folder.documents,
            key=lambda document: (document.document_id not in needed, sampling_order(document.document_id)),
        )[:SAMPLE_DOCUMENTS]
        self._other_examples.write(list(_within(SAMPLE_BYTES, map(example_row, questions), "question")))
        rows = (_document_row(folder_id, document) for document in documents)
        self._other_documents.write(list(_within(SAMPLE_BYTES, rows, "text")))

    def finish(self) -> WrittenPart:
        return WrittenPart(
            self._examples.close(),
            self._documents.close(),
            self._other_examples.close(),
            self._other_documents.close(),
            self._counts,
            self._agents,
            self._tally.left_out,
            self._tally.ignored,
        )

    def _fold(self, folder_id: str, limits: SetLimits) -> FolderSet:
        selection, records = self._selection, self._records
        self._records = []
        return fold(folder_id, records, selection.erasures, limits, selection.command.issued_at)


def _within(budget: int, rows: Iterable[dict[str, Any]], field: str) -> Iterator[dict[str, Any]]:
    """Rows whose texts have at most ``budget`` bytes together."""
    for row in rows:
        size = len(row[field].encode())
        if size <= budget:
            budget -= size
            yield row


def example_row(example: Example) -> dict[str, Any]:
    """A row of ``snapshot_schema.EXAMPLES``."""
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


def _document_row(folder_id: str, document: DocumentUpserted) -> dict[str, str]:
    return {
        "folder_id": folder_id,
        "document_id": document.document_id,
        "title": document.title,
        "text": document.text,
    }


class _ParquetFile:
    """Written a row group a folder."""

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
        return WrittenFile(self._path, self._rows, file_sha256(self._path))
