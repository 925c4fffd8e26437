"""Answers previews: what a request would train on, of a partition that this worker owns."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from foldtune.events import Preview, PreviewRequested
from foldtune.reasons import explain
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.errors import OutdatedViewError, PartitionLostError
from streams.metrics import PREVIEW_SECONDS, SKIPPED_PREVIEWS
from streams.partitions.broker_clock import CLOCK
from streams.publishing.publisher import EventPublisher, OutgoingEvent
from streams.snapshots import preview_child
from streams.snapshots.export import SEGMENTS_PER_CALL, Call
from streams.snapshots.preview_child import Counted, FolderContents
from streams.snapshots.selection import count_too_old
from streams.threads import PREVIEWS, run_in
from streams.training_sets.segments import Segment
from streams.training_sets.store import PartitionView, TrainingSets

_log = structlog.get_logger()
# Of a folder, whose segments were rewritten meanwhile.
_TRIES = 10


class PreviewHandler:
    """Reads the training sets in slices of a few megabytes, and has the export process count them."""

    def __init__(
        self,
        sets: TrainingSets,
        publisher: EventPublisher,
        settings: Settings,
        call: Call,
        *,
        now: Callable[[], datetime] = CLOCK.now,
    ) -> None:
        """``call`` runs what computes, see ``ExportProcess``."""
        self._sets = sets
        self._publisher = publisher
        self._settings = settings
        self._call = call
        self._now = now
        self._numbers = itertools.count()
        # One partition after the other: some are answered in time, where not all can be, with the memory of one.
        self._counting = asyncio.Lock()

    async def answer(self, request: PreviewRequested, partition: int, timestamp: int) -> None:
        """Publish the partition's answer, or why there is none; nothing once nobody waits for it any more.

        ``timestamp`` is that of the request's record, in milliseconds; 0 is unknown.

        Raises:
            PartitionLostError: another worker owns the partition now; the request is redelivered to it.
        """
        began, at = time.perf_counter(), self._now()
        asked_at = datetime.fromtimestamp(timestamp / 1000, UTC) if timestamp else at
        deadline = asked_at + timedelta(seconds=request.seconds)
        answer = Preview(preview_id=request.preview_id, partition=partition, at=at)
        try:
            async with nullcontext() if request.documents else self._counting:
                counted = await self._counted(request, partition, at, deadline)
        except PartitionLostError:
            raise
        except TimeoutError:
            SKIPPED_PREVIEWS.inc()
            _log.info("preview given up, its time is over", preview_id=request.preview_id, partition=partition)
            return
        except Exception as error:
            _log.exception("preview failed", preview_id=request.preview_id, partition=partition)
            # Without the values at fault: whoever asks may have no right to users' words.
            answer = answer.model_copy(update={"error": "; ".join(explain(error))})
        else:
            answer = answer.model_copy(
                update={
                    "labels": dict(sorted(counted.labels.items())),
                    "positives": counted.positives,
                    "pairs": counted.pairs,
                    "documents": counted.documents,
                    "folder_count": counted.folder_count,
                    "folders": counted.folders,
                    "left_out": dict(sorted(counted.tally.left_out.items())),
                    "ignored": dict(sorted((+counted.tally.ignored).items())),
                    "logs": counted.logs,
                    "texts": counted.texts,
                    "cut": counted.cut,
                    "seconds": time.perf_counter() - began,
                }
            )
        PREVIEW_SECONDS.observe(time.perf_counter() - began)
        outgoing = OutgoingEvent(Topic.PREVIEWS, answer, request.preview_id)
        if await self._publisher.publish((outgoing,), partition):
            reason = f"its answer of {len(answer.encode())} bytes cannot be written"
            failed = Preview(preview_id=request.preview_id, partition=partition, at=at, error=reason)
            await self._publisher.publish((OutgoingEvent(Topic.PREVIEWS, failed, request.preview_id),), partition)

    async def _counted(self, request: PreviewRequested, partition: int, at: datetime, deadline: datetime) -> Counted:
        if self._now() > deadline:
            raise TimeoutError
        number, erasures = next(self._numbers), self._sets.erasures(partition)
        begin = partial(preview_child.begin, number, request, erasures, self._settings.strengths, at)
        await run_in(PREVIEWS, self._call, begin)
        try:
            await self._scan(request, partition, number, deadline)
            counted = await run_in(PREVIEWS, self._call, partial(preview_child.finish, number))
            if not _is_for_texts(request):
                view = self._sets.view(partition)
                counted.tally.left_out += await run_in(PREVIEWS, count_too_old, view, request.data.folders)
            return counted
        finally:
            # A worker that stops has ended the process.
            with suppress(OSError, RuntimeError):
                await run_in(PREVIEWS, self._call, partial(preview_child.discard, number))

    async def _scan(self, request: PreviewRequested, partition: int, number: int, deadline: datetime) -> None:
        """Have all folders counted, in slices; a folder that was rewritten meanwhile is read again."""
        view, tries = self._sets.view(partition), 0
        topics = {Topic.DOCUMENTS} if _is_for_texts(request) else set(Topic)
        folders = deque(view.folder_ids(_named(request)))
        while folders:
            if self._now() > deadline:
                raise TimeoutError
            count = _slice(view, folders, topics)
            taken = list(itertools.islice(folders, count))
            try:
                await run_in(PREVIEWS, self._send, view, taken, topics, number)
            except OutdatedViewError:
                tries += 1
                if tries == _TRIES:
                    raise
                view = self._sets.view(partition)
            else:
                for _ in taken:
                    folders.popleft()

    def _send(self, view: PartitionView, folder_ids: list[str], topics: set[Topic], number: int) -> None:
        """Read the folders, the first of which may be large, before any of them is counted."""
        large = _segments(view, folder_ids[0], topics)
        last = max(0, (len(large) - 1) // SEGMENTS_PER_CALL * SEGMENTS_PER_CALL)
        for start in range(0, last, SEGMENTS_PER_CALL):
            contents = _contents(view, large[start : start + SEGMENTS_PER_CALL])
            self._call(partial(preview_child.add_segments, number, contents, first=start == 0))
        folders: list[FolderContents] = [
            (folder_id, view.limits.of(folder_id), _contents(view, _segments(view, folder_id, topics)[skipped:]))
            for folder_id, skipped in zip(folder_ids, itertools.chain([last], itertools.repeat(0)), strict=False)
        ]
        self._call(partial(preview_child.finish_folders, number, folders, continued=last > 0))


def _is_for_texts(request: PreviewRequested) -> bool:
    return bool(request.documents or request.near)


def _named(request: PreviewRequested) -> Collection[str] | None:
    """The folders to read, of those that the request selects; ``None`` for all."""
    wanted = {document.folder_id for document in request.documents}
    if not wanted or None in wanted:
        return request.data.folders
    named = {folder_id for folder_id in wanted if folder_id is not None}
    return named if request.data.folders is None else named & set(request.data.folders)


def _slice(view: PartitionView, folder_ids: Collection[str], topics: set[Topic]) -> int:
    """How many of the next folders to read together: one at least, and others as long as they are small."""
    count = total = 0
    for folder_id in folder_ids:
        total += len(_segments(view, folder_id, topics))
        if count and total > SEGMENTS_PER_CALL:
            break
        count += 1
    return count


def _segments(view: PartitionView, folder_id: str, topics: set[Topic]) -> list[Segment]:
    return [segment for segment in view.segments.get(folder_id, ()) if segment.topic in topics]


def _contents(view: PartitionView, segments: list[Segment]) -> list[tuple[str, bytes]]:
    return [(segment.topic_label, content) for segment, content in view.contents(segments)]
