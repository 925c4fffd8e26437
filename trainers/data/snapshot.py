"""Reads a snapshot, its manifest and its Parquet files, and verifies their digests."""

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from foldtune.errors import ObjectMissingError
from foldtune.events import SnapshotFile, SnapshotManifest
from foldtune.object_store import ObjectStore
from foldtune.reasons import explain
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from trainers.errors import BadSnapshotError


@dataclass(frozen=True)
class Snapshot:
    """The data of a training job; the tables have the schemas of ``foldtune.snapshot_schema``."""

    manifest: SnapshotManifest
    examples: pa.Table
    documents: pa.Table
    # A sample of folders that the request does not name; empty in those of version 0.1.
    other_examples: pa.Table
    other_documents: pa.Table


def read_snapshot(store: ObjectStore, uri: str, sha256: str) -> Snapshot:
    """Read the snapshot whose manifest is at ``uri`` and has the digest ``sha256``.

    Raises:
        BadSnapshotError: an object is missing, has another digest or schema, or the export of a partition failed.
    """
    try:
        manifest = SnapshotManifest.model_validate_json(_get_verified(store, uri, sha256))
    except ValidationError as error:
        raise BadSnapshotError(f"{uri}: {'; '.join(explain(error))}") from error
    for part in manifest.parts:
        if part.error is not None:
            raise BadSnapshotError(f"partition {part.partition}: {part.error}")
    return Snapshot(
        manifest,
        _read_table(store, [part.examples for part in manifest.parts], EXAMPLES),
        _read_table(store, [part.documents for part in manifest.parts], DOCUMENTS),
        _read_table(store, [part.other_examples for part in manifest.parts], EXAMPLES),
        _read_table(store, [part.other_documents for part in manifest.parts], DOCUMENTS),
    )


def _read_table(store: ObjectStore, files: list[SnapshotFile | None], schema: pa.Schema) -> pa.Table:
    tables = [_read_file(store, file, schema) for file in files if file is not None]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _read_file(store: ObjectStore, file: SnapshotFile, schema: pa.Schema) -> pa.Table:
    content = _get_verified(store, file.uri, file.sha256)
    try:
        # Without Arrow's threads: a process that ends soon after them may abort, after its work is done.
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False).select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError) as error:
        raise BadSnapshotError(f"{file.uri}: {error}") from error
    if table.num_rows != file.rows:
        raise BadSnapshotError(f"{file.uri} has {table.num_rows} rows, {file.rows} according to the manifest")
    return table


def _get_verified(store: ObjectStore, uri: str, sha256: str) -> bytes:
    try:
        content = store.get(store.key(uri))
    except (ObjectMissingError, ValueError) as error:
        raise BadSnapshotError(str(error)) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise BadSnapshotError(f"{uri} has the digest {digest}, {sha256} was expected")
    return content
