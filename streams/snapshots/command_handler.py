"""Answers snapshot commands: waits until what was published before is in, exports, and says what is new since."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from pydantic import Field

from foldtune.events import Model, SnapshotCommand, SnapshotPart, TopicOffset, TrainingFinished, TrainingProgressed
from foldtune.kafka import partition_of
from foldtune.object_store import ObjectStore
from foldtune.settings import PolicyRule, Settings
from foldtune.topics import DATA_TOPICS, Topic
from streams.errors import OutdatedViewError, PartitionLostError
from streams.metrics import observe_snapshot
from streams.publishing.publisher import EventPublisher, OutgoingEvent
from streams.snapshots.export import export
from streams.snapshots.export_process import ExportProcess
from streams.training_sets.store import TrainingSets

_log = structlog.get_logger()
_REASON_CHARACTERS = 1_000
_POLL = timedelta(milliseconds=50)


class Watermark(Model):
    """Up to which offset of ``chat-logs`` a model has learnt from one partition."""

    trained_request_id: str | None = None
    offset: int = 0
    # Snapshots whose training has not ended yet, by request.
    pending: dict[str, int] = Field({}, max_length=64)


class Offsets:
    """How far the data topics have been taken in, and how far they reach."""

    def __init__(
        self,
        taken: Callable[[Topic, int], int],
        ends: Callable[[int], Awaitable[dict[Topic, int]]],
        owned: Callable[[int], bool],
    ) -> None:
        self.taken = taken
        self.ends = ends
        self.owned = owned

    async def catch_up(self, partition: int, timeout: timedelta) -> None:
        """Wait until all that was published before now is taken in, or for ``timeout``.

        Raises:
            PartitionLostError: another worker takes it in now.
        """
        ends = await self.ends(partition)
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while any(self.taken(topic, partition) < end for topic, end in ends.items()):
                    if not self.owned(partition):
                        raise PartitionLostError(partition)
                    await asyncio.sleep(_POLL.total_seconds())
        except TimeoutError:
            _log.warning("export goes on without the newest events", partition=partition, waited=str(timeout))

    def reached(self, partition: int) -> tuple[TopicOffset, ...]:
        """How far each data topic has been taken in."""
        return tuple(
            TopicOffset(topic=topic.label, partition=partition, offset=self.taken(topic, partition))
            for topic in DATA_TOPICS
        )


class Exporter:
    """Exports the partitions that this worker owns."""

    def __init__(
        self, sets: TrainingSets, offsets: Offsets, outbox: EventPublisher, store: ObjectStore, settings: Settings
    ) -> None:
        self._sets = sets
        self._offsets = offsets
        self._outbox = outbox
        self._store = store
        self._settings = settings
        self._process = ExportProcess()
        self._reported: dict[tuple[str, int], TrainingProgressed] = {}

    async def export(self, command: SnapshotCommand, partition: int) -> None:
        """Export and publish the part; a failure is a part too, so that the request ends and does not hang.

        Raises:
            PartitionLostError: the command is its new owner's.
        """
        request = command.request
        with structlog.contextvars.bound_contextvars(request_id=request.request_id):
            await self._export(command, partition)

    async def _export(self, command: SnapshotCommand, partition: int) -> None:
        request = command.request
        try:
            await self._offsets.catch_up(partition, self._settings.worker.catch_up_timeout)
            part = await self._part(command, partition)
            observe_snapshot(part)
            _log.info("exported", partition=partition, folders=part.folder_count, seconds=round(part.seconds, 3))
        except PartitionLostError:
            raise
        except (
            Exception
        ) as error:  # whatever it is, the next attempt would meet it again: the request is told, and ends
            _log.exception("export failed", partition=partition)
            reason = f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]
            part = SnapshotPart(request_id=request.request_id, model=request.model, partition=partition, error=reason)
        watermark = self._watermark(request.model, partition)
        for one in part.offsets:
            if one.topic == Topic.CHAT_LOGS.label:
                pending = _newest({**watermark.pending, request.request_id: one.offset})
                await self._keep(request.model, partition, watermark.model_copy(update={"pending": pending}))
        await self._outbox.publish(
            (OutgoingEvent(Topic.SNAPSHOT_PARTS, part, request.model),), self._home(request.model)
        )

    async def _part(self, command: SnapshotCommand, partition: int) -> SnapshotPart:
        async with self._sets.steady(partition):
            while True:
                # Together, so that the one is what the other was made of.
                reached, view = self._offsets.reached(partition), self._sets.view(partition)
                try:
                    return await asyncio.to_thread(
                        export, command, view, reached, self._store, self._settings.strengths, compute=self._process
                    )
                except OutdatedViewError as error:
                    _log.info("exported again", partition=partition, reason=str(error))

    def close(self) -> None:
        """Nothing more will be exported."""
        self._process.close()

    async def finished(self, event: TrainingFinished, partition: int) -> None:
        """The model has learnt from its snapshot: what is new is counted from there. Raises like ``export``."""
        watermark = self._watermark(event.model, partition)
        offset = watermark.pending.get(event.request_id, watermark.offset)
        pending = {name: at for name, at in watermark.pending.items() if at > offset}
        await self._keep(
            event.model, partition, Watermark(trained_request_id=event.request_id, offset=offset, pending=pending)
        )

    async def report(self, rule: PolicyRule, partition: int) -> None:
        """Tell the policy how much of the partition the model does not know, where that has changed."""
        watermark = self._watermark(rule.model, partition)
        try:
            new = self._sets.labelled_since(partition, watermark.offset, rule.folders)
        except OutdatedViewError:
            return
        progress = TrainingProgressed(
            model=rule.model,
            partition=partition,
            new_examples=new,
            trained_request_id=watermark.trained_request_id,
        )
        if self._reported.get((rule.model, partition)) != progress:
            await self._outbox.publish(
                (OutgoingEvent(Topic.TRAINING_PROGRESS, progress, rule.model),), self._home(rule.model)
            )
            self._reported[rule.model, partition] = progress

    def _home(self, model: str) -> int:
        return partition_of(model, self._settings.kafka.partitions)

    def _watermark(self, model: str, partition: int) -> Watermark:
        value = self._sets.table.get(partition, _key(model))
        return Watermark.model_validate_json(value) if value else Watermark()

    async def _keep(self, model: str, partition: int, watermark: Watermark) -> None:
        await self._sets.write(partition, {_key(model): watermark.model_dump_json().encode()})


def _newest(pending: dict[str, int]) -> dict[str, int]:
    return dict(list(pending.items())[-64:])


def _key(model: str) -> bytes:
    return b"w|" + model.encode()
