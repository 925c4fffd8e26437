"""The Faust application: who takes which topic in, what is done by the clock, and what a rebalance means.

Faust shares the partitions out, keeps the tables and rebuilds them from their changelogs. The topics are read by loops
of our own, which keep their places in the tables.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import faust
import structlog
from faust.types.auth import CredentialsT
from pydantic import Field, TypeAdapter, ValidationError

from foldtune.events import SnapshotCommand, TrainingFinished, now
from foldtune.kafka import MAX_REQUEST_BYTES, client_options
from foldtune.object_store import ObjectStore
from foldtune.settings import KafkaSettings, Settings
from foldtune.topics import DATA_TOPICS, Topic
from streams.errors import PartitionLostError
from streams.metrics import MAINTENANCE
from streams.partitions.broker_reader import BrokerReader
from streams.partitions.changelog_table import ChangelogTable
from streams.partitions.consumer import PartitionConsumer
from streams.publishing.dead_letters import invalid_record, send_to_dead_letters
from streams.publishing.publisher import FaustEventPublisher
from streams.requests.coordinator import Coordinator
from streams.snapshots.command_handler import Exporter, Offsets
from streams.training_sets.compaction import MaintenanceCounts, maintain
from streams.training_sets.ingest import Ingest
from streams.training_sets.store import TrainingSets
from streams.worker.broker_monitor import BrokerMonitor
from streams.worker.http_server import WorkerHttpServer, listen
from streams.worker.owned_partitions import OwnedPartitions

_log = structlog.get_logger()
_UPKEEP_SECONDS = 5.0
_TICK_SECONDS = 2.0
# EX_SOFTWARE: whoever supervises the worker starts it again, and it goes on from the places that its tables keep.
_EXIT_BROKEN = 70
_SETS, _REQUESTS = "training-sets", "requests"
_DRAIN_SECONDS = 4.0
_CONTROL_TOPICS = (Topic.FINE_TUNE_REQUESTS, Topic.SNAPSHOT_PARTS, Topic.TRAINING_REPORTS, Topic.TRAINING_PROGRESS)

_COMMANDS: TypeAdapter[SnapshotCommand | TrainingFinished] = TypeAdapter(
    Annotated[SnapshotCommand | TrainingFinished, Field(discriminator="type")]
)


def create_app(settings: Settings, store: ObjectStore) -> faust.App:
    """A worker's application, ready to be run.

    Raises:
        CannotListenError: the address for metrics and health is not to be had.
    """
    app = _faust_app(settings)
    app.worker = _Worker(app, settings, store)
    app.worker.listen()
    return app


def changelogs(settings: Settings) -> tuple[str, ...]:
    """The topics that the worker's tables are backed by, as Faust names them."""
    return tuple(f"{settings.worker.app_id}-{table}-changelog" for table in (_SETS, _REQUESTS))


class _App(faust.App):
    """Answers operators before Faust starts anything, and has the intakes done before Faust closes their tables."""

    worker: "_Worker"

    async def on_start(self) -> None:
        await self.worker.start()
        await super().on_start()

    async def on_stop(self) -> None:
        await self.worker.drain()
        await super().on_stop()

    async def on_shutdown(self) -> None:
        await super().on_shutdown()
        await self.worker.close()


def _faust_app(settings: Settings) -> _App:
    kafka, worker = settings.kafka, settings.worker
    return _App(
        worker.app_id,
        broker=[f"kafka://{server}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(kafka),
        broker_session_timeout=worker.session_timeout.total_seconds(),
        broker_heartbeat_interval=worker.session_timeout.total_seconds() / 10,
        consumer_group_instance_id=worker.instance_id or "",
        producer_max_request_size=MAX_REQUEST_BYTES,
        producer_acks=-1,
        store="rocksdb://",
        datadir=str(Path(worker.data_dir).absolute()),
        topic_partitions=kafka.partitions,
        topic_replication_factor=kafka.replication_factor,
        topic_disable_leader=True,
        table_standby_replicas=worker.standby_replicas,
        web_enabled=False,
    )


def _credentials(settings: KafkaSettings) -> CredentialsT | None:
    options = client_options(settings)
    context = options.get("ssl_context")
    if "sasl_mechanism" in options:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None


class _Worker:
    """Connects the parts to the topics, to the clock and to Faust's signals."""

    def __init__(self, app: faust.App, settings: Settings, store: ObjectStore) -> None:
        self._app = app
        self._settings = settings
        kafka = settings.kafka
        self._outbox = outbox = FaustEventPublisher(app, kafka)
        self._reader = BrokerReader(kafka)
        self._table = ChangelogTable(app, _SETS, kafka.partitions, self._reader)
        requests = ChangelogTable(app, _REQUESTS, kafka.partitions, self._reader)
        self._sets = TrainingSets(self._table, settings.sets)
        ingest = Ingest(self._sets, outbox, settings.bounds)
        self._coordinator = Coordinator(requests, outbox, store, settings)
        block = settings.worker.block_records
        data = PartitionConsumer(
            kafka, DATA_TOPICS, self._table, write=self._sets.write, handle=ingest.take, block_records=block
        )
        commands = PartitionConsumer(
            kafka,
            (Topic.SNAPSHOT_COMMANDS,),
            self._table,
            write=self._sets.write,
            handle=self._take_command,
            block_records=1,
        )
        control = PartitionConsumer(
            kafka, _CONTROL_TOPICS, requests, write=requests.write, handle=self._coordinator.take, block_records=1
        )
        self._intakes = (data, commands, control)
        self._running: list[asyncio.Task[None]] = []
        self._exporter = Exporter(
            self._sets, Offsets(data.next_offset, self._reader.end_offsets, self._table.owns), outbox, store, settings
        )
        self._stopping = False
        # Its own reader: a question that is given up must not disturb an export's.
        self._brokers = BrokerMonitor(BrokerReader(kafka), self._owned, data.next_offset)
        self._server = self._operations_server()

    def listen(self) -> None:
        """Register intakes, timers and what happens on a rebalance."""
        self._app.task(self._take_in)
        if self._server:
            self._app.task(self._brokers.run)
        self._timer("tick", _TICK_SECONDS, self._coordinator.tick)
        self._timer("upkeep", _UPKEEP_SECONDS, self._keep_up)
        self._timer("report", self._settings.policy.interval.total_seconds(), self._report)
        self._table.on_recovered(self._partitions_changed)
        signals: Any = self._app
        signals.on_partitions_revoked.connect(self._partitions_changed, weak=False)

    async def start(self) -> None:
        """Let operators see the worker from its first moment on."""
        if self._server:
            await self._server.start()

    async def drain(self) -> None:
        """Have the blocks that are at work done; what is not done in time is taken again after the next start."""
        self._stopping = True
        for intake in self._intakes:
            intake.stop()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()

    async def close(self) -> None:
        """Disconnect, and stop answering operators."""
        self._exporter.close()
        await self._reader.close()
        await self._brokers.close()
        if self._server:
            await self._server.stop()

    # ── Events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take_in(self) -> None:
        self._running = [asyncio.create_task(_guarded(intake)) for intake in self._intakes]

    async def _take_command(self, topic: Topic, partition: int, messages: Sequence[Any]) -> None:
        for message in messages:
            try:
                command = _COMMANDS.validate_json(message.value or b"")
            except ValidationError as error:
                # Only workers should write here; should somebody else, it stops nothing.
                await send_to_dead_letters(self._outbox, topic, message, invalid_record(message, error))
                continue
            if isinstance(command, TrainingFinished):
                await self._exporter.finished(command, partition)
            else:
                await self._exporter.export(command.model_copy(update={"partition": partition}), partition)

    # ── Timers and rebalances ────────────────────────────────────────────────────────────────────────────────────────

    def _timer(self, name: str, seconds: float, handle: Callable[[int], Awaitable[object]]) -> None:
        async def on_time() -> None:
            with _fatal(name):
                for partition in range(self._settings.kafka.partitions):
                    if self._app.rebalancing or not self._table.owns(partition):
                        continue
                    try:
                        await handle(partition)
                    except PartitionLostError:
                        continue

        self._app.timer(seconds, name=name)(on_time)

    async def _keep_up(self, partition: int) -> None:
        done = await maintain(self._sets, partition, now())
        for action, count in asdict(done).items():
            MAINTENANCE.labels(action).inc(count)
        if done != MaintenanceCounts():
            _log.info("segments rewritten", partition=partition, **asdict(done))

    async def _report(self, partition: int) -> None:
        for rule in self._settings.policy.rules:
            await self._exporter.report(rule, partition)

    async def _partitions_changed(self, *_: Any, **__: Any) -> None:
        self._sets.forget()

    # ── Operations ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _operations_server(self) -> WorkerHttpServer | None:
        worker = self._settings.worker
        if worker.http_port is None:
            return None
        collector = OwnedPartitions(self._owned, self._sets.known, lambda: self._brokers.lag)
        listener = listen(worker.http_host, worker.http_port)
        return WorkerHttpServer(listener, collector, unhealthy=self._unhealthy, not_ready=self._not_ready)

    def _owned(self) -> list[int]:
        return [partition for partition in range(self._settings.kafka.partitions) if self._table.owns(partition)]

    def _unhealthy(self) -> str | None:
        # That there is an answer says that the event loop turns.
        ended = any(task.done() for task in self._running) and not self._stopping
        return "an intake has ended" if ended else None

    def _not_ready(self) -> str | None:
        if self._stopping:
            return "the worker is stopping"
        if self._app.rebalancing and not self._app.in_recovery:
            return "the partitions are being shared out"
        if not self._app.tables.actives_ready:
            return "the tables are being recovered"
        if silence := self._brokers.silence():
            return f"the brokers have not answered for {silence:.0f} s"
        return None


async def _guarded(intake: PartitionConsumer) -> None:
    with _fatal("intake"):
        await intake.run()


@contextmanager
def _fatal(where: str) -> Iterator[None]:
    """Ends the process on what nobody foresaw: a worker without its intake would look alive and do nothing."""
    try:
        yield
    except asyncio.CancelledError:
        raise
    except Exception:
        _log.exception("cannot go on", where=where)
        os._exit(_EXIT_BROKEN)
