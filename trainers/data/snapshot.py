"""Reads a snapshot: its manifest and its Parquet parts, each with the digest that it must have."""

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from foldtune.errors import ObjectMissingError
from foldtune.events import SnapshotFile, SnapshotManifest
from foldtune.object_store import ObjectStore
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from trainers.errors import BadSnapshotError


@dataclass(frozen=True)
class Snapshot:
    """What a job trains on; the tables have the schemas of ``foldtune.snapshot_schema``."""

    manifest: SnapshotManifest
    examples: pa.Table
    documents: pa.Table


def read_snapshot(store: ObjectStore, uri: str, sha256: str) -> Snapshot:
    """The snapshot at ``uri``.

    Raises:
        BadSnapshotError: an object is missing, has another digest, or is not of its schema; it is named.
    """
    try:
        manifest = SnapshotManifest.model_validate_json(_checked(store, uri, sha256))
    except ValidationError as error:
        raise BadSnapshotError(f"{uri}: {error}") from error
    for part in manifest.parts:
        if part.error is not None:
            raise BadSnapshotError(f"partition {part.partition}: {part.error}")
    return Snapshot(
        manifest,
        _table(store, [part.examples for part in manifest.parts], EXAMPLES),
        _table(store, [part.documents for part in manifest.parts], DOCUMENTS),
    )


def _table(store: ObjectStore, files: list[SnapshotFile | None], schema: pa.Schema) -> pa.Table:
    tables = [_part(store, file, schema) for file in files if file is not None]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _part(store: ObjectStore, file: SnapshotFile, schema: pa.Schema) -> pa.Table:
    content = _checked(store, file.uri, file.sha256)
    try:
        table = pq.read_table(pa.BufferReader(content)).select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError) as error:
        raise BadSnapshotError(f"{file.uri}: {error}") from error
    if table.num_rows != file.rows:
        raise BadSnapshotError(f"{file.uri} has {table.num_rows} rows, its manifest says {file.rows}")
    return table


def _checked(store: ObjectStore, uri: str, sha256: str) -> bytes:
    try:
        content = store.get(store.key(uri))
    except (ObjectMissingError, ValueError) as error:
        raise BadSnapshotError(str(error)) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise BadSnapshotError(f"{uri} has the digest {found}, {sha256} was expected")
    return content
