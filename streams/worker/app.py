"""The Faust application: connects the parts of a worker to topics, timers, rebalances and the HTTP server.

Faust assigns the partitions and recovers the tables from their changelogs. Topics are not consumed by Faust's agents
but by ``PartitionConsumer``, which stores its offsets in the tables.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, NoReturn, cast

import faust
import structlog
from aiokafka.consumer import fetcher
from faust.types import TP
from pydantic import Field, TypeAdapter

from foldtune import events, topics
from foldtune.compression import bound_decompression
from foldtune.events import ErasureConfirmed, PreviewRequested, SnapshotCommand, TrainingFinished
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from foldtune.topic_admin import inspect_topics
from foldtune.topics import COMPACTED_WITHIN, DATA_TOPICS, MAX_RECORD_BYTES, Topic
from streams.errors import PartitionLostError
from streams.metrics import FAILED_TIMERS, MAINTENANCE, PARTITIONS, REBALANCES
from streams.partitions.broker_clock import CLOCK, MAX_SKEW_SECONDS
from streams.partitions.broker_reader import BrokerReader
from streams.partitions.changelog_table import ChangelogTable
from streams.partitions.consumer import Handler, PartitionConsumer, Write, is_at_fault
from streams.partitions.local_store import check_before_recovery, store_folder
from streams.partitions.positions import newest_time
from streams.partitions.producing import brokers_at_fault
from streams.partitions.topic_watch import TopicWatch
from streams.publishing.dead_letters import reject_record
from streams.publishing.publisher import FaustEventPublisher, OutgoingEvent
from streams.requests.coordinator import Coordinator
from streams.requests.policies import Policies
from streams.requests.rejections import Rejections
from streams.snapshots.command_handler import DataOffsets, SnapshotCommandHandler
from streams.snapshots.export_process import ExportProcess
from streams.snapshots.preview_handler import PreviewHandler
from streams.snapshots.stats_publisher import FolderStatsPublisher
from streams.training_sets.compaction import MaintenanceCounts, Sweeping, maintain
from streams.training_sets.erasures import ErasureRules
from streams.training_sets.ingest import Ingest
from streams.training_sets.store import SWEPT_KEY, TrainingSets
from streams.worker import group_consumer
from streams.worker.broker_monitor import BrokerMonitor
from streams.worker.faust_credentials import faust_credentials
from streams.worker.http_server import WorkerHttpServer, listen
from streams.worker.membership import Membership
from streams.worker.owned_partitions import OwnedPartitions
from streams.worker.watchdog import EXIT_SOFTWARE, LOOK_SECONDS, LoopWatchdog, Watchdog, exit_standing_still

# Also for Faust's own consumer and for the readers of single records, which use the same fetcher.
bound_decompression(fetcher)

_log = structlog.get_logger()
_MAINTENANCE_SECONDS = 5.0
_TICK_SECONDS = 2.0
# The group would give the partitions of a member to others after one session.
_STANDSTILL_SESSIONS = 2
# As for settings that are refused.
_EXIT_REFUSED = 2
_MEMBERSHIP, _NO_PARTITIONS = "membership in the group", "partitions"
_HANDLING_OF_REQUESTS = "handling of requests"
# A consumer that fetches nothing for so long leaves its group for ever, and Faust fetches nothing once the tables are
# recovered. That a worker stands still is noticed otherwise.
_NEVER_SECONDS = timedelta(days=3650).total_seconds()
_TRAINING_SETS, _REQUESTS = topics.TABLES
_DRAIN_SECONDS = 4.0
_CONTROL_TOPICS = (Topic.FINE_TUNE_REQUESTS, Topic.SNAPSHOT_PARTS, Topic.TRAINING_REPORTS, Topic.TRAINING_PROGRESS)

_COMMANDS: TypeAdapter[SnapshotCommand | TrainingFinished] = TypeAdapter(
    Annotated[SnapshotCommand | TrainingFinished, Field(discriminator="type")]
)


def create_app(settings: Settings, store: ObjectStore) -> faust.App:
    """A worker's application, ready to run.

    Raises:
        CannotListenError: the address of the HTTP server is unknown or taken.
    """
    app = _create_faust_app(settings)
    group_consumer.install(app)
    app.components = _Components(app, settings, store)
    app.components.register()
    return app


def changelogs(settings: Settings) -> tuple[str, ...]:
    """The changelog topics of the worker's tables, as Faust names them."""
    return topics.changelogs(settings.worker.app_id)


class _App(faust.App):
    """Starts the HTTP server before Faust starts anything, and drains the consumers before Faust closes the tables."""

    components: "_Components"

    async def on_start(self) -> None:
        await self.components.start()
        check_before_recovery(cast(Any, self.tables).recovery)
        await super().on_start()

    async def on_stop(self) -> None:
        await self.components.drain()
        await super().on_stop()

    async def on_shutdown(self) -> None:
        await super().on_shutdown()
        await self.components.close()


def _create_faust_app(settings: Settings) -> _App:
    kafka, worker = settings.kafka, settings.worker
    session = worker.session_timeout.total_seconds()
    return _App(
        worker.app_id,
        broker=[f"kafka://{server}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=faust_credentials(kafka),
        broker_session_timeout=session,
        broker_heartbeat_interval=session / 10,
        broker_request_timeout=max(90.0, session),
        # For how long a rebalance waits for members that do not join it.
        broker_rebalance_timeout=session,
        broker_max_poll_interval=_NEVER_SECONDS,
        # Not "", which the brokers take for one static member, the same for all workers.
        consumer_group_instance_id=worker.instance_id or None,
        producer_max_request_size=MAX_RECORD_BYTES,
        producer_acks=-1,
        # A record that is sent after the session could come after those of the partition's next owner. The last try is
        # made within this time, and waits for its answer as long again.
        producer_request_timeout=session / 2,
        store="rocksdb://",
        datadir=str(store_folder(worker)),
        topic_partitions=kafka.partitions,
        topic_replication_factor=kafka.replication_factor,
        topic_disable_leader=True,
        table_standby_replicas=worker.standby_replicas,
        web_enabled=False,
    )


class _Components:
    """The parts of a worker, connected to topics, timers and Faust's signals."""

    def __init__(self, app: faust.App, settings: Settings, store: ObjectStore) -> None:
        self._app = app
        self._settings = settings
        kafka, worker = settings.kafka, settings.worker
        self._publisher = FaustEventPublisher(app, kafka)
        self._reader = BrokerReader(kafka)
        # Of its own: the coordinator must not wait for what exports read.
        self._status_reader = BrokerReader(kafka)
        inspect = partial(inspect_topics, kafka, tuple(Topic), changelogs(settings))
        self._topic_watch = TopicWatch(inspect, kafka.topic_prefix)
        self._table = ChangelogTable(app, _TRAINING_SETS, kafka.partitions, self._reader, SWEPT_KEY)
        self._requests = requests = ChangelogTable(app, _REQUESTS, kafka.partitions, self._reader)
        self._sets = TrainingSets(self._table, settings.sets, ErasureRules.of(worker, settings.bounds))
        self._sweeping = Sweeping(worker.erasure_interval, self._confirm_erasures)
        partitions = kafka.partitions if kafka.partitioner == "murmur2" else None
        ingest = Ingest(self._sets, self._publisher, settings.bounds, settings.sets, partitions)
        status_topic = Topic.FINE_TUNE_STATUS.named(kafka.topic_prefix)
        statuses = partial(self._reader.whole, status_topic)
        self._policy_reader = BrokerReader(kafka)
        self._policies = Policies(
            settings, partial(self._policy_reader.whole, Topic.POLICIES.named(kafka.topic_prefix))
        )
        rejections = Rejections(
            partial(self._policy_reader.whole, Topic.REVIEWS.named(kafka.topic_prefix)), kafka.partitions
        )
        self._coordinator = Coordinator(
            requests, self._publisher, store, settings, statuses, policies=self._policies, rejections=rejections
        )

        write = self._sets.write
        self._data = self._create_consumer(DATA_TOPICS, self._table, write, ingest.handle, worker.block_records)
        commands = self._create_consumer((Topic.SNAPSHOT_COMMANDS,), self._table, write, self._handle_commands)
        self._control = self._create_consumer(_CONTROL_TOPICS, requests, requests.write, self._coordinator.handle)
        # Of its own: a person waits, and an export may take long.
        previews = self._create_consumer((Topic.PREVIEW_REQUESTS,), self._table, write, self._handle_previews)
        others = (commands, self._control, previews) if worker.handle_requests else ()
        self._consumers = (self._data, *others)
        self._consumer_tasks: list[asyncio.Task[None]] = []
        offsets = DataOffsets(self._data.position, self._reader.end_offsets, self._table.owns)
        process = ExportProcess()
        self._stats = FolderStatsPublisher(self._sets, offsets, self._publisher, settings, process)
        self._previews = PreviewHandler(self._sets, self._publisher, settings, process)
        self._snapshots = SnapshotCommandHandler(
            self._sets,
            offsets,
            self._publisher,
            store,
            settings,
            statuses=partial(self._status_reader.since, status_topic),
            process=process,
            summaries=self._stats.summaries,
        )
        self._stopping = False

        self._membership = Membership(app)
        self._watchdog = Watchdog()
        self._standstill_limit = worker.session_timeout.total_seconds() * _STANDSTILL_SESSIONS
        self._loop_watchdog = LoopWatchdog(self._loops, self._standstill_limit)
        self._broker_monitor = self._create_broker_monitor()
        self._background: list[asyncio.Task[None]] = []
        self._http_server = self._create_http_server()

    def _create_consumer(
        self, topics: tuple[Topic, ...], table: ChangelogTable, write: Write, handle: Handler, block_records: int = 1
    ) -> PartitionConsumer:
        return PartitionConsumer(
            self._settings.kafka,
            topics,
            table,
            write=write,
            handle=handle,
            reject=partial(reject_record, self._publisher),
            block_records=block_records,
            watch=self._topic_watch,
        )

    def _create_broker_monitor(self) -> BrokerMonitor:
        # Not the snapshot commands: an export may take long.
        watched = (*DATA_TOPICS, *(_CONTROL_TOPICS if self._settings.worker.handle_requests else ()))
        # With a reader of its own: a request that times out must not disturb an export's.
        return BrokerMonitor(BrokerReader(self._settings.kafka), self._owned_partitions, self._next_offset, watched)

    def register(self) -> None:
        """Register consumers, timers and the rebalance callbacks with Faust."""
        self._app.task(self._start_consumers)
        if self._settings.worker.handle_requests:
            self._register_timer("tick", _TICK_SECONDS, self._coordinator.tick)
            stats_seconds = self._settings.worker.stats_interval.total_seconds()
            self._register_timer("folder-stats", min(_TICK_SECONDS, stats_seconds), self._stats.refresh)
            policy_seconds = self._settings.policy.interval.total_seconds()
            self._app.timer(policy_seconds, name="policies")(self._refresh_policies)
            self._register_timer("policy", policy_seconds, self._report_progress)
        self._register_timer("maintenance", _MAINTENANCE_SECONDS, self._maintain)
        self._app.timer(_MAINTENANCE_SECONDS, name="standbys")(self._reclaim_standbys)
        self._table.on_recovered(self._on_partitions_changed)
        signals: Any = self._app
        signals.on_partitions_revoked.connect(self._on_partitions_changed, weak=False)
        signals.on_partitions_revoked.connect(self._on_rebalance, weak=False)
        signals.on_partitions_assigned.connect(self._on_assigned, weak=False)

    async def start(self) -> None:
        """Start the HTTP server, and what watches the worker: Faust's tasks begin after the first recovery only."""
        if self._http_server:
            await self._http_server.start()
        watching = {
            "broker monitor": self._broker_monitor.run,
            "topic watch": self._topic_watch.run,
            "watchdog": self._watch,
        }
        self._background = [asyncio.create_task(_keep_running(where, work)) for where, work in watching.items()]
        self._loop_watchdog.start()

    async def drain(self) -> None:
        """Let the consumers finish the blocks in flight; those that take too long are redelivered after a restart."""
        self._stopping = True
        self._loop_watchdog.stop()
        for task in self._background:
            task.cancel()
        for consumer in self._consumers:
            consumer.stop()
        if self._consumer_tasks:
            _, pending = await asyncio.wait(self._consumer_tasks, timeout=_DRAIN_SECONDS)
            for task in pending:
                task.cancel()

    async def close(self) -> None:
        """Disconnect, and stop the HTTP server."""
        self._snapshots.close()
        await self._reader.close()
        await self._status_reader.close()
        await self._policy_reader.close()
        await self._broker_monitor.close()
        if self._http_server:
            await self._http_server.stop()

    # ── Topics ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start_consumers(self) -> None:
        self._consumer_tasks = [
            asyncio.create_task(_keep_running("consumer", consumer.run)) for consumer in self._consumers
        ]

    async def _handle_commands(self, _: Topic, partition: int, messages: Sequence[Any]) -> None:
        for message in messages:
            command = _COMMANDS.validate_json(message.value or b"")
            if isinstance(command, TrainingFinished):
                await self._snapshots.training_finished(command, partition)
            else:
                await self._snapshots.export(command.model_copy(update={"partition": partition}), partition)

    async def _handle_previews(self, _: Topic, partition: int, messages: Sequence[Any]) -> None:
        for message in messages:
            request = PreviewRequested.model_validate_json(message.value or b"")
            await self._previews.answer(request, partition, message.timestamp)

    # ── Timers and rebalances ────────────────────────────────────────────────────────────────────────────────────────

    def _register_timer(self, name: str, seconds: float, handle: Callable[[int], Awaitable[object]]) -> None:
        """Call ``handle`` with each owned partition every ``seconds``."""

        async def on_timer() -> None:
            for partition in range(self._settings.kafka.partitions):
                with _exit_on_error(name, partition=partition), suppress(PartitionLostError):
                    if not self._app.rebalancing and self._table.owns(partition):
                        await _count_failures(name, partition, handle)

        self._app.timer(seconds, name=name)(on_timer)

    async def _maintain(self, partition: int) -> None:
        now = CLOCK.now()
        # What is evicted is gone: whichever clock is ahead, a broker's or the machine's, the other holds it back.
        as_of = min(events.now(), now if CLOCK.stamped else newest_time(self._table, partition))
        counts = await maintain(self._sets, partition, now, as_of, self._sweeping)
        for action, count in asdict(counts).items():
            MAINTENANCE.labels(action).inc(count)
        if counts != MaintenanceCounts():
            _log.info("segments maintained", partition=partition, **asdict(counts))

    async def _reclaim_standbys(self) -> None:
        with _exit_on_error("standbys"):
            if self._app.tables.actives_ready and not self._app.rebalancing:
                await self._table.reclaim_standbys()
                self._table.remove_lost()

    async def _confirm_erasures(self, partition: int, erasure_ids: Sequence[str], records: int) -> None:
        at = CLOCK.now()
        confirmations = (
            ErasureConfirmed(
                erasure_id=erasure_id,
                app_id=self._settings.worker.app_id,
                partition=partition,
                at=at,
                records=records,
                compacted_by=at + COMPACTED_WITHIN,
            )
            for erasure_id in erasure_ids
        )
        outgoing = tuple(OutgoingEvent(Topic.ERASURE_CONFIRMATIONS, event, event.erasure_id) for event in confirmations)
        await self._publisher.publish(outgoing, partition)
        _log.info("erasures applied", partition=partition, erasures=len(erasure_ids), records=records)

    async def _refresh_policies(self) -> None:
        try:
            await self._policies.refresh()
        except Exception as error:
            # Those that are known go on.
            FAILED_TIMERS.labels("policies").inc()
            _log.warning("policies not read, will retry", error=repr(error))
            await self._policy_reader.close()

    async def _report_progress(self, partition: int) -> None:
        for model in self._policies.models():
            policy = self._policies.of(model)
            for rule in policy.rules if policy else ():
                await self._snapshots.report_progress(model, rule, partition)

    async def _on_partitions_changed(self, *_: Any, **__: Any) -> None:
        self._sets.invalidate()

    async def _on_rebalance(self, _: Any, revoked: set[TP], **__: Any) -> None:
        REBALANCES.inc()
        _log.info("partitions revoked", partitions=self._partitions_of(revoked))

    async def _on_assigned(self, _: Any, assigned: set[TP], **__: Any) -> None:
        _log.info("partitions assigned", partitions=self._partitions_of(assigned))

    def _partitions_of(self, changelogs: set[TP]) -> list[int]:
        return sorted({tp.partition for tp in changelogs if tp in self._app.assignor.assigned_actives()})

    # ── Standstills ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        while True:
            attached = self._membership.attach()
            if CLOCK.wrong_at_first:
                _exit_with_wrong_clock(*CLOCK.wrong_at_first)
            if error := self._membership.error():
                exit_standing_still(_MEMBERSHIP, 0, error=error)
            due = self._due() | ({_MEMBERSHIP: self._membership.confirmations} if attached else {})
            standstill = self._watchdog.look(due, self._broker_monitor.answers, time.monotonic())
            if standstill and standstill.seconds > self._standstill_limit:
                exit_standing_still(*standstill)
            await asyncio.sleep(LOOK_SECONDS)

    def _due(self) -> dict[str, Hashable]:
        """What should move, with a state that changes when it does."""
        due: dict[str, Hashable] = {}
        owned = self._owned_partitions()
        if not owned and not self._is_surplus():
            # A recovery that proceeds may take long.
            recovery = cast(Any, self._app.tables)._recovery
            due[_NO_PARTITIONS] = tuple(recovery.active_offsets.values()) if recovery else None
        for (topic, partition), records in self._broker_monitor.lag.items():
            if not (records and partition in owned):
                continue
            if topic in DATA_TOPICS:
                offset = self._data.next_offset(topic, partition)
                due[f"ingest of {topic.label}/{partition}"] = (
                    offset,
                    self._publisher.dead_letters,
                    self._table.restored,
                )
            else:
                due[_HANDLING_OF_REQUESTS] = self._handled_requests(owned)
        return due

    def _handled_requests(self, owned: list[int]) -> Hashable:
        """Of all partitions together: the coordinator handles one event at a time."""
        offsets = (self._control.next_offset(topic, partition) for topic in _CONTROL_TOPICS for partition in owned)
        return *offsets, self._coordinator.statuses_read, self._publisher.dead_letters, self._requests.restored

    def _next_offset(self, topic: Topic, partition: int) -> int:
        return (self._control if topic in _CONTROL_TOPICS else self._data).next_offset(topic, partition)

    def _is_surplus(self) -> bool:
        """Whether the group has no partition for this worker: it is a member of it, and has none assigned."""
        app = self._app
        return app.tables.actives_ready and not app.rebalancing and not app.assignor.assigned_actives()

    def _loops(self) -> dict[str, asyncio.AbstractEventLoop]:
        loops = {"main": self._app.loop, "consumer": self._membership.loop()}
        return {name: loop for name, loop in loops.items() if loop is not None}

    # ── HTTP server ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _create_http_server(self) -> WorkerHttpServer | None:
        worker = self._settings.worker
        if worker.http_port is None:
            return None
        PARTITIONS.set(self._settings.kafka.partitions)
        collector = OwnedPartitions(
            self._owned_partitions,
            self._sets.cached_segments,
            lambda: self._broker_monitor.lag,
            lambda: self._watchdog.seconds(_NO_PARTITIONS),
        )
        listener = listen(worker.http_host, worker.http_port)
        return WorkerHttpServer(listener, collector, unhealthy=self._unhealthy, not_ready=self._not_ready)

    def _owned_partitions(self) -> list[int]:
        return [partition for partition in range(self._settings.kafka.partitions) if self._table.owns(partition)]

    def _unhealthy(self) -> str | None:
        # That this runs at all says that the event loop is not blocked.
        ended = any(task.done() for task in self._consumer_tasks) and not self._stopping
        return "a consumer has ended" if ended else None

    def _not_ready(self) -> str | None:
        if self._stopping:
            return "the worker is stopping"
        if self._app.rebalancing and not self._app.in_recovery:
            return "the partitions are being rebalanced"
        if not self._app.tables.actives_ready:
            return "the tables are being recovered"
        if seconds := self._broker_monitor.unresponsive_seconds():
            return f"the brokers have not answered for {seconds:.0f} s"
        standstill = self._watchdog.longest
        if standstill and standstill.seconds > self._standstill_limit / _STANDSTILL_SESSIONS:
            return f"no progress for {standstill.seconds:.0f} s: {standstill.what}"
        return None


async def _count_failures(timer: str, partition: int, handle: Callable[[int], Awaitable[object]]) -> None:
    """Call a timer's ``handle``; state that it cannot handle must not stop the other partitions."""
    try:
        await handle(partition)
    except Exception as error:
        if not is_at_fault(error):
            raise
        FAILED_TIMERS.labels(timer).inc()
        _log.exception("timer failed", timer=timer, partition=partition)


async def _keep_running(where: str, work: Callable[[], Awaitable[None]]) -> None:
    ended = False
    while not ended:
        with _exit_on_error(where):
            await work()
            ended = True
        await asyncio.sleep(0 if ended else LOOK_SECONDS)


def _exit_with_wrong_clock(mine: datetime, brokers: datetime) -> NoReturn:
    """Refuse to start: only a broker's answer to a first record tells its time."""
    _log.error(
        "clock differs from the brokers', refusing to start",
        clock=mine.isoformat(timespec="seconds"),
        brokers_clock=brokers.isoformat(timespec="seconds"),
        at_most_seconds=MAX_SKEW_SECONDS,
    )
    os._exit(_EXIT_REFUSED)


@contextmanager
def _exit_on_error(where: str, **ids: int) -> Iterator[None]:
    """Ends the process on an unexpected error: a worker without its consumers would look alive and do nothing.

    If the brokers are at fault, it is logged: the caller repeats what it did.
    """
    try:
        yield
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if brokers_at_fault(error):
            _log.warning("brokers unresponsive, will retry", where=where, error=repr(error), **ids)
            return
        _log.exception("unhandled error, exiting", where=where, **ids)
        os._exit(EXIT_SOFTWARE)
