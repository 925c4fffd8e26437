"""Exports what a request selects of one partition: reads the view, and uploads what ``export_child`` writes."""

import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from foldtune.events import SnapshotCommand, SnapshotFile, SnapshotPart, TopicOffset
from foldtune.object_keys import SnapshotKind, snapshot_file_key
from foldtune.object_store import ObjectStore
from foldtune.pairs import sampling_order
from foldtune.settings import LabelWeights
from foldtune.work_folders import work_folder
from streams.snapshots import export_child
from streams.snapshots.export_child import Selection, WrittenFile
from streams.snapshots.selection import count_too_old
from streams.training_sets.store import PartitionView

T = TypeVar("T")
EXPORT_PREFIX = "export-"
# Segments sent to the child at a time: a few megabytes.
SEGMENTS_PER_CALL = 16
# Of other folders in a partition, at most so many, and bytes of their segments, are read for the sample: each is folded
# whole, and passed over if it exceeds what is left of the bytes.
_OTHER_FOLDERS, _OTHER_BYTES = 32, 64 * 1024**2


class Call(Protocol):
    """Calls a function, in this process or in another, and returns its result."""

    def __call__(self, function: Callable[[], T]) -> T:
        """Raises ``OSError`` if the other process is gone."""


def export(
    command: SnapshotCommand,
    view: PartitionView,
    offsets: tuple[TopicOffset, ...],
    store: ObjectStore,
    weights: LabelWeights,
    *,
    call: Call,
    folder: Path,
) -> SnapshotPart:
    """Write the partition's part of a snapshot, folder by folder: memory grows with the largest folder only.

    This side reads the view and uploads the files from below ``folder``; ``call`` decides where ``export_child`` does
    the rest.

    The same view gives the same bytes, and objects are named by their digest: exports that are repeated or run
    concurrently cannot corrupt each other.

    Raises:
        ObjectStoreError: an upload failed.
        OSError: the other process is gone.
        OutdatedViewError: a segment was rewritten meanwhile.
    """
    request = command.request
    started = time.perf_counter()
    next_offsets = {offset.topic: offset.offset for offset in offsets}
    with work_folder(folder, EXPORT_PREFIX) as path:
        directory = str(path)
        call(partial(export_child.begin, directory, Selection(command, view.erasures(), weights, next_offsets)))
        try:
            for folder_id in view.folder_ids(request.data.folders):
                _send_segments(view, folder_id, directory, call)
                call(partial(export_child.finish_folder, directory, folder_id, view.limits.of(folder_id)))
            for folder_id in _other_folders(view, request.data.folders):
                _send_segments(view, folder_id, directory, call)
                call(partial(export_child.finish_other_folder, directory, folder_id, view.limits.of(folder_id)))
            part = call(partial(export_child.finish, directory))
        finally:
            call(partial(export_child.discard, directory))
        written = time.perf_counter()
        examples = _upload(part.examples, store, command, "examples")
        documents = _upload(part.documents, store, command, "documents")
        # Whoever knows them expects both or none.
        has_others = part.other_examples.rows > 0
        other_examples = _upload(part.other_examples, store, command, "other-examples") if has_others else None
        other_documents = _upload(part.other_documents, store, command, "other-documents") if has_others else None
        ended = time.perf_counter()
    left_out = part.left_out + count_too_old(view, request.data.folders)
    return SnapshotPart(
        request_id=request.request_id,
        model=request.model,
        partition=command.partition,
        examples=examples,
        documents=documents,
        other_examples=other_examples,
        other_documents=other_documents,
        # Only folders that the request names, which is as many as fit into one message.
        folders=tuple(part.counts) if request.data.folders else (),
        folder_count=len(part.counts),
        positives=sum(count.examples for count in part.counts),
        agents=tuple(sorted(part.agents & set(request.data.agents or ()))),
        offsets=offsets,
        left_out=dict(sorted(left_out.items())),
        ignored=dict(sorted((+part.ignored).items())),
        seconds=ended - started,
        store_seconds=ended - written,
    )


def _send_segments(view: PartitionView, folder_id: str, directory: str, call: Call) -> None:
    segments = view.segments[folder_id]
    for start in range(0, len(segments), SEGMENTS_PER_CALL):
        contents = [
            (segment.topic_label, content)
            for segment, content in view.contents(segments[start : start + SEGMENTS_PER_CALL])
        ]
        call(partial(export_child.add_segments, directory, contents))


def _other_folders(view: PartitionView, selected: Collection[str] | None) -> Iterator[str]:
    """Folders for the sample of those that the request does not name: the same for every request, and not many."""
    if selected is None:
        return
    folders, budget = sorted(view.folder_ids(), key=sampling_order), _OTHER_BYTES
    for folder_id in [folder_id for folder_id in folders if folder_id not in selected][:_OTHER_FOLDERS]:
        size = sum(segment.size for segment in view.segments[folder_id])
        if size <= budget:
            budget -= size
            yield folder_id


def _upload(file: WrittenFile, store: ObjectStore, command: SnapshotCommand, kind: SnapshotKind) -> SnapshotFile:
    request = command.request
    key = snapshot_file_key(request.model, request.request_id, kind, command.partition, file.sha256)
    store.put_file(key, file.path)
    return SnapshotFile(uri=store.uri(key), sha256=file.sha256, rows=file.rows)
