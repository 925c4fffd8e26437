"""Handles snapshot commands: waits for ingestion to catch up, exports, and reports the number of new examples."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from pydantic import Field, ValidationError

from foldtune.events import (
    Event,
    FineTuneStatus,
    FolderQuality,
    LostRecords,
    Model,
    SnapshotCommand,
    SnapshotPart,
    TopicOffset,
    TrainingFinished,
    TrainingProgressed,
)
from foldtune.kafka import partition_of
from foldtune.object_store import ObjectStore
from foldtune.policy import QualityFall, Rule
from foldtune.settings import Settings
from foldtune.topics import DATA_TOPICS, Topic
from streams.errors import OutdatedViewError, PartitionLostError
from streams.metrics import observe_snapshot
from streams.partitions.broker_clock import CLOCK
from streams.partitions.local_store import exports_folder
from streams.partitions.positions import Position
from streams.publishing.publisher import EventPublisher, OutgoingEvent, OutgoingRecord
from streams.snapshots import quality
from streams.snapshots.export import export
from streams.snapshots.export_process import ExportProcess
from streams.snapshots.folder_stats import Summary
from streams.threads import EXPORTS, run_in
from streams.training_sets.fold import entity_id
from streams.training_sets.segments import Segment
from streams.training_sets.store import TrainingSets

_log = structlog.get_logger()
_MAX_PENDING = 64
# What sets drop by its age.
_AGING = frozenset({Topic.CHAT_LOGS.label, Topic.FEEDBACK.label})
_POLL = timedelta(milliseconds=50)
StatusesSince = Callable[[int, datetime], AsyncIterator[Any]]


class Mark(Model):
    """The offsets of one partition up to which a model has been trained.

    Version 0.1 drops those of ``feedback``: after a rollback, what it labelled before is new once more.
    """

    trained_request_id: str | None = None
    offset: int = 0
    feedback_offset: int = 0
    documents_offset: int = 0

    @property
    def offsets(self) -> dict[Topic, int]:
        """From where on labels are new."""
        return {Topic.CHAT_LOGS: self.offset, Topic.FEEDBACK: self.feedback_offset}


class Watermark(Mark):
    """The mark of the last training on everything, and those of rules whose folders another one covered."""

    # By the rule's key; of version 0.1 there are none, and its mark is that of any training.
    rules: dict[str, Mark] = Field({}, max_length=_MAX_PENDING)
    # The offsets of snapshots whose training has not ended yet, by request.
    pending: dict[str, int] = Field({}, max_length=_MAX_PENDING)
    pending_feedback: dict[str, int] = Field({}, max_length=_MAX_PENDING)
    pending_documents: dict[str, int] = Field({}, max_length=_MAX_PENDING)

    def of(self, rule: Rule) -> Mark:
        """From where on what is in a rule's folders is new to it."""
        return self.rules.get(rule.key, self)

    def with_snapshot(self, request_id: str, offsets: Mapping[str, int]) -> "Watermark":
        """With the offsets of a request's snapshot, by topic label."""
        pending = _with_pending(self.pending, request_id, offsets.get(Topic.CHAT_LOGS.label))
        feedback = _with_pending(self.pending_feedback, request_id, offsets.get(Topic.FEEDBACK.label))
        documents = _with_pending(self.pending_documents, request_id, offsets.get(Topic.DOCUMENTS.label))
        return self.model_copy(
            update={"pending": pending, "pending_feedback": feedback, "pending_documents": documents}
        )

    def trained(self, event: TrainingFinished) -> "Watermark":
        """After the training of a request, of those rules whose folders it covers."""

        def mark_after(before: Mark) -> Mark:
            request_id = event.request_id
            return Mark(
                trained_request_id=request_id,
                offset=self.pending.get(request_id, before.offset),
                feedback_offset=self.pending_feedback.get(request_id, before.feedback_offset),
                documents_offset=self.pending_documents.get(request_id, before.documents_offset),
            )

        everything, rules = event.everything or event.rules is None, dict(self.rules)
        for key in event.rules or ():
            rules.pop(key, None)
            if not everything:
                rules[key] = mark_after(self.rules.get(key, self))
        if not everything:
            # Those of rules that are gone are the oldest.
            rules = dict(list(rules.items())[-_MAX_PENDING:])
            return self.model_copy(update={"rules": rules})
        mark = mark_after(self)
        return Watermark(
            **mark.model_dump(),
            pending={other: at for other, at in self.pending.items() if at > mark.offset},
            pending_feedback={other: at for other, at in self.pending_feedback.items() if at > mark.feedback_offset},
            pending_documents={other: at for other, at in self.pending_documents.items() if at > mark.documents_offset},
        )


def _with_pending(pending: dict[str, int], request_id: str, offset: int | None) -> dict[str, int]:
    return pending if offset is None else dict(list({**pending, request_id: offset}.items())[-_MAX_PENDING:])


class DataOffsets:
    """How far the data topics have been ingested, and how far they reach."""

    def __init__(
        self,
        position: Callable[[Topic, int], Position],
        end_offsets: Callable[[int], Awaitable[dict[Topic, int]]],
        owns: Callable[[int], bool],
    ) -> None:
        self._position = position
        self._end_offsets = end_offsets
        self._owns = owns

    async def catch_up(self, partition: int, timeout: timedelta) -> None:
        """Wait until everything published before this call is ingested, at most for ``timeout``.

        Raises:
            PartitionLostError: another worker owns the partition now, and ingests it.
        """
        before = {topic: self._position(topic, partition) for topic in DATA_TOPICS}
        ends = await self._end_offsets(partition)

        def reached(topic: Topic) -> bool:
            position = self._position(topic, partition)
            # Beyond the end: the topic was made anew, or lost its end, which its consumer is about to notice.
            is_former = before[topic].offset > ends[topic] and position.history == before[topic].history
            return position.offset >= ends[topic] and not is_former

        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while not all(map(reached, ends)):
                    if not self._owns(partition):
                        raise PartitionLostError(partition)
                    await asyncio.sleep(_POLL.total_seconds())
        except TimeoutError:
            _log.warning("exporting without the newest events", partition=partition, waited=str(timeout))

    def next_offsets(self, partition: int) -> tuple[TopicOffset, ...]:
        """The next offset to ingest of each data topic, as the state counts."""
        return tuple(
            TopicOffset(topic=topic.label, partition=partition, offset=self._position(topic, partition).state_offset)
            for topic in DATA_TOPICS
        )

    def lost(self, partition: int) -> Iterator[LostRecords]:
        """What was lost of each data topic."""
        for topic in DATA_TOPICS:
            for cause, lost in self._position(topic, partition).history.lost.items():
                last_at = datetime.fromtimestamp(lost.last_ms / 1000, UTC)
                yield LostRecords(topic=topic.label, cause=cause, records=lost.records, last_at=last_at)


class SnapshotCommandHandler:
    """Exports the partitions that this worker owns, and tracks what each model was trained on."""

    def __init__(
        self,
        sets: TrainingSets,
        offsets: DataOffsets,
        publisher: EventPublisher,
        store: ObjectStore,
        settings: Settings,
        *,
        statuses: StatusesSince,
        process: ExportProcess | None = None,
        summaries: Callable[[int], Mapping[str, Summary]] = lambda _: {},
    ) -> None:
        """``statuses`` reads what a partition of ``fine-tune-status`` got since a moment; ``summaries`` are the figures
        of a partition's folders.
        """
        self._sets = sets
        self._offsets = offsets
        self._publisher = publisher
        self._store = store
        self._settings = settings
        self._statuses = statuses
        self._process = process or ExportProcess()
        self._summaries = summaries
        self._last_reports: dict[tuple[str, str, int], TrainingProgressed] = {}
        # By rule and partition: what was counted, and how many documents have changed.
        self._changed: dict[tuple[str, int], tuple[int, int]] = {}

    async def export(self, command: SnapshotCommand, partition: int) -> None:
        """Export the partition and publish its part; a failure is published as a part too, and fails the request.

        Raises:
            PartitionLostError: another worker owns the partition now; the command is redelivered to it.
        """
        request = command.request
        with structlog.contextvars.bound_contextvars(request_id=request.request_id):
            part = await self._export_or_failure(command, partition)
            # Durable before the part is published: no training ends on a snapshot whose offset is unknown.
            if part.offsets:
                offsets = {offset.topic: offset.offset for offset in part.offsets}
                watermark = self._watermark(request.model, partition).with_snapshot(request.request_id, offsets)
                await self._store_watermark(request.model, partition, watermark)
            if refused := await self._publish(Topic.SNAPSHOT_PARTS, part, request.model):
                error = f"its part of {len(refused[0].value)} bytes cannot be written"
                await self._publish(Topic.SNAPSHOT_PARTS, _failed_part(command, partition, error), request.model)

    async def _export_or_failure(self, command: SnapshotCommand, partition: int) -> SnapshotPart:
        timeout = self._settings.worker.snapshot_timeout
        if CLOCK.known and CLOCK.now() - command.issued_at > timeout:
            # Its request has failed since. After an outage, or read from the beginning, there may be many of these.
            _log.info("stale snapshot command skipped", partition=partition, issued_at=str(command.issued_at))
            return _failed_part(command, partition, f"the command was read more than {timeout} after it was issued")
        try:
            if await self._has_ended(command):
                _log.info("snapshot command of an ended request skipped", partition=partition)
                return _failed_part(command, partition, "the request has ended")
            await self._offsets.catch_up(partition, self._settings.worker.catch_up_timeout)
            part = await self._export(command, partition)
        except PartitionLostError:
            raise
        except Exception as error:
            # Whatever it is, a retry would meet it again: the request fails instead of hanging.
            _log.exception("snapshot export failed", partition=partition)
            return _failed_part(command, partition, f"{type(error).__name__}: {error}")
        observe_snapshot(part)
        _log.info("snapshot exported", partition=partition, folders=part.folder_count, seconds=round(part.seconds, 3))
        return part

    async def _has_ended(self, command: SnapshotCommand) -> bool:
        """Whether the request was cancelled, for example, while its command waited for other exports."""
        request, ended = command.request, False
        partition = partition_of(request.model, self._settings.kafka.partitions)
        try:
            # To the end: the reader's connection is shared.
            async for record in self._statuses(partition, command.issued_at):
                with suppress(ValidationError):
                    status = FineTuneStatus.model_validate_json(record.value or b"")
                    is_of_request = (status.model, status.request_id) == (request.model, request.request_id)
                    # One that was cancelled may have a training that goes on for others.
                    ended |= is_of_request and status.state.terminal and not status.run_continues
        except Exception as error:
            # An export too many costs less than a request that fails.
            _log.warning("ends of requests not read, exporting", partition=partition, error=repr(error))
        return ended

    async def _export(self, command: SnapshotCommand, partition: int) -> SnapshotPart:
        async with self._sets.rewrite_lock(partition):
            while True:
                # Without an await between the two, so that the view holds every record below the offsets.
                offsets, view = self._offsets.next_offsets(partition), self._sets.view(partition)
                lost = tuple(self._touched_by_loss(command, partition))
                try:
                    part = await run_in(
                        EXPORTS,
                        export,
                        command,
                        view,
                        offsets,
                        self._store,
                        self._settings.strengths,
                        call=self._process,
                        folder=exports_folder(self._settings.worker),
                    )
                except OutdatedViewError as error:
                    _log.info("snapshot export restarted", partition=partition, error=str(error))
                else:
                    return part.model_copy(update={"lost": lost})

    def _touched_by_loss(self, command: SnapshotCommand, partition: int) -> Iterator[LostRecords]:
        """What was lost that the request might have selected; of which folders it was, nobody knows."""
        data, sets, kafka = command.request.data, self._settings.sets, self._settings.kafka
        partitions = {partition_of(folder_id, kafka.partitions) for folder_id in data.folders or ()}
        if partitions and partition not in partitions and kafka.partitioner == "murmur2":
            return
        oldest = command.issued_at - max((sets.max_age, *(sets.of(folder_id).max_age for folder_id in sets.folders)))
        for lost in self._offsets.lost(partition):
            # A record is older than its loss. Documents and erasures count for ever.
            if lost.topic not in _AGING or lost.last_at >= max(oldest, data.start or oldest):
                yield lost

    def close(self) -> None:
        """End the export process."""
        self._process.close()

    async def training_finished(self, event: TrainingFinished, partition: int) -> None:
        """Move the watermark to the snapshot that the model was trained on. Raises like ``export``."""
        watermark = self._watermark(event.model, partition).trained(event)
        await self._store_watermark(event.model, partition, watermark)

    async def report_progress(self, model: str, rule: Rule, partition: int) -> None:
        """Publish what a rule of a model's policy decides by, if it has changed: how many labels are new, for one."""
        mark = self._watermark(model, partition).of(rule)
        try:
            new_examples = self._sets.labelled_since(partition, mark.offsets, rule.data.folders)
            changed_documents = self._changed_documents(rule, mark, partition) if rule.changed_documents else 0
        except OutdatedViewError:
            return
        summaries = self._summaries(partition)
        folders = self._sets.view(partition).folder_ids(rule.data.folders)
        counted = {folder_id: summaries[folder_id] for folder_id in folders if folder_id in summaries}
        usable = sum(summary.examples for summary in counted.values())
        falls, tests = _worst(rule.quality, counted) if rule.quality else ((), 0)
        progress = TrainingProgressed(
            model=model,
            partition=partition,
            new_examples=new_examples,
            trained_request_id=mark.trained_request_id,
            rule=rule.key,
            # Nothing is known before the first count.
            usable=usable if usable or len(counted) == len(folders) else None,
            documents=sum(summary.documents for summary in counted.values()),
            changed_documents=changed_documents,
            quality=falls,
            quality_tests=tests,
        )
        reported = (model, rule.key, partition)
        if self._last_reports.get(reported) != progress:
            await self._publish(Topic.TRAINING_PROGRESS, progress, model)
            self._last_reports[reported] = progress

    def _changed_documents(self, rule: Rule, mark: Mark, partition: int) -> int:
        """How many documents have changed since a mark; read again only where there are other segments."""
        view, changed, segments = self._sets.view(partition), set[tuple[str, str]](), list[Segment]()
        for folder_id in view.folder_ids(rule.data.folders):
            segments += [
                segment
                for segment in view.segments[folder_id]
                if segment.topic is Topic.DOCUMENTS and segment.last_offset >= mark.documents_offset
            ]
        basis = hash((mark.documents_offset, tuple(segments)))
        known = self._changed.get((rule.key, partition))
        if known and known[0] == basis:
            return known[1]
        for segment in segments:
            for record in view.records([segment]):
                if record.offset >= mark.documents_offset:
                    changed.add((segment.folder_id, entity_id(record.event)))
        self._changed[rule.key, partition] = basis, len(changed)
        return len(changed)

    async def _publish(self, topic: Topic, event: Event, model: str) -> tuple[OutgoingRecord, ...]:
        """To the model's partition, which its coordinator reads; returns what cannot be written."""
        partition = partition_of(model, self._settings.kafka.partitions)
        return await self._publisher.publish((OutgoingEvent(topic, event, model),), partition)

    def _watermark(self, model: str, partition: int) -> Watermark:
        value = self._sets.table.get(partition, _watermark_key(model))
        return Watermark.model_validate_json(value) if value else Watermark()

    async def _store_watermark(self, model: str, partition: int, watermark: Watermark) -> None:
        await self._sets.write(
            partition, {_watermark_key(model): watermark.model_dump_json(exclude_defaults=True).encode()}
        )


def _worst(fall: QualityFall, folders: Mapping[str, Summary]) -> tuple[tuple[FolderQuality, ...], int]:
    window, baseline = (duration // timedelta(days=1) for duration in (fall.window, fall.baseline))
    days = {folder_id: summary.days for folder_id, summary in folders.items()}
    return quality.worst(quality.compared(days, CLOCK.now().date(), window, baseline), fall.min_fall)


def _failed_part(command: SnapshotCommand, partition: int, error: str) -> SnapshotPart:
    request = command.request
    return SnapshotPart(request_id=request.request_id, model=request.model, partition=partition, error=error)


def _watermark_key(model: str) -> bytes:
    return b"w|" + model.encode()
