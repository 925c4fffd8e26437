"""The Faust application: which agent reads which topic, and when an event counts as done.

Acknowledging is done by hand: an event is done when all that follows from it is durable, and only by the worker that
got it in the present generation of the group. Whatever goes wrong in between, it is delivered again.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faust
import structlog
from faust.types import TP
from faust.types.auth import CredentialsT

from infra.kafka import MAX_REQUEST_BYTES, tls_context
from infra.objects import ObjectStore
from infra.settings import KafkaSettings, Settings
from streams.durable_table import DurableTable
from streams.errors import PartitionLostError
from streams.events import SnapshotCommand, TrainingFinished, now
from streams.exporter import Exporter, Offsets
from streams.faust_corrections import block_scheduler, correct_faust
from streams.ingest import Ingest
from streams.log_reader import LogReader
from streams.outbox import FaustOutbox
from streams.requests import Coordinator
from streams.topics import DATA_TOPICS, Topic
from streams.training_sets import TrainingSets
from streams.upkeep import Upkept, keep_up

_log = structlog.get_logger()
_UPKEEP_SECONDS = 5.0
_TICK_SECONDS = 2.0
# EX_SOFTWARE: whoever supervises the worker starts it again, and what was not acknowledged is delivered again.
_EXIT_BROKEN = 70
_SETS, _REQUESTS = "training-sets", "requests"
_RETRY_SECONDS = 0.5
_DRAIN_SECONDS = 3.0
# Blocks that wait in memory; what is behind them stays with the brokers.
_BUFFERED_BLOCKS = 8
# The default of 1 MiB a partition would cut a backlog into blocks of a thousand logs.
_FETCH_BYTES = 4 << 20

Handler = Callable[[Any], Awaitable[None]]


def create_app(settings: Settings, store: ObjectStore) -> faust.App:
    """A worker's application, ready to be run."""
    correct_faust()
    app = _faust_app(settings)
    worker = _Worker(app, settings, store)
    worker.listen()
    return app


def changelogs(settings: Settings) -> tuple[str, ...]:
    """The topics that the worker's tables are backed by, as Faust names them."""
    return tuple(f"{settings.worker.app_id}-{table}-changelog" for table in (_SETS, _REQUESTS))


def _faust_app(settings: Settings) -> faust.App:
    kafka, worker = settings.kafka, settings.worker
    data = frozenset(topic.named(kafka.topic_prefix) for topic in DATA_TOPICS)
    return faust.App(
        worker.app_id,
        broker=[f"kafka://{server}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(kafka),
        broker_session_timeout=worker.session_timeout.total_seconds(),
        broker_heartbeat_interval=worker.session_timeout.total_seconds() / 10,
        broker_commit_interval=worker.commit_interval.total_seconds(),
        broker_max_poll_records=worker.block_records,
        consumer_max_fetch_size=_FETCH_BYTES,
        consumer_group_instance_id=worker.instance_id or "",
        producer_max_request_size=MAX_REQUEST_BYTES,
        producer_acks=-1,
        store="rocksdb://",
        datadir=str(Path(worker.data_dir).absolute()),
        topic_partitions=kafka.partitions,
        topic_replication_factor=kafka.replication_factor,
        topic_disable_leader=True,
        table_standby_replicas=0,
        # An export may take minutes, and a rebalance must not wait for it: the command is delivered again instead.
        stream_wait_empty=False,
        web_enabled=False,
        ConsumerScheduler=block_scheduler(data, worker.block_records),
    )


def _credentials(settings: KafkaSettings) -> CredentialsT | None:
    tls = settings.security_protocol.endswith("SSL")
    context = tls_context(settings) if tls else None
    if settings.security_protocol.startswith("SASL"):
        secret = settings.sasl_password
        return faust.SASLCredentials(
            username=settings.sasl_username,
            password=secret.get_secret_value() if secret else None,
            mechanism=settings.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None


class _Worker:
    """Connects the parts to Faust's agents and timers."""

    def __init__(self, app: faust.App, settings: Settings, store: ObjectStore) -> None:
        self._app = app
        self._settings = settings
        self._topics = {topic.named(settings.kafka.topic_prefix): topic for topic in Topic}
        outbox = FaustOutbox(app, settings.kafka)
        self._reader = LogReader(settings.kafka)
        self._table = DurableTable(app, _SETS, settings.kafka.partitions, self._reader)
        requests = DurableTable(app, _REQUESTS, settings.kafka.partitions, self._reader)
        self._taken: dict[TP, int] = {}
        self._sets = TrainingSets(self._table, settings.sets)
        self._ingest = Ingest(self._sets, outbox, settings.bounds)
        offsets = Offsets(self._taken_to, self._reader.ends, self._table.owns)
        self._exporter = Exporter(self._sets, offsets, outbox, store, settings)
        self._coordinator = Coordinator(requests, outbox, store, settings)

    def listen(self) -> None:
        """Register agents, timers and what happens on a rebalance."""
        self._agent(DATA_TOPICS, self._take_block, buffered=_BUFFERED_BLOCKS)
        self._agent((Topic.SNAPSHOT_COMMANDS,), self._take_command)
        control = (Topic.FINE_TUNE_REQUESTS, Topic.SNAPSHOT_PARTS, Topic.TRAINING_REPORTS, Topic.TRAINING_PROGRESS)
        self._agent(control, self._take_control)
        self._timer("tick", _TICK_SECONDS, self._coordinator.tick)
        self._timer("upkeep", _UPKEEP_SECONDS, self._keep_up)
        self._timer("report", self._settings.policy.interval.total_seconds(), self._report)
        self._table.on_recovered(self._partitions_changed)
        signals: Any = self._app
        signals.on_partitions_revoked.connect(self._revoked, weak=False)
        signals.on_before_shutdown.connect(self._stopped, weak=False)

    # ── Events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take_block(self, message: Any) -> None:
        await self._ingest.take(self._topics[message.topic], message.partition, message.value)
        self._taken[TP(message.topic, message.partition)] = message.offset + 1

    async def _take_command(self, message: Any) -> None:
        # Only workers write here, so what cannot be read is a mistake of ours and may stop us.
        if b'"training_finished"' in message.value:
            await self._exporter.finished(TrainingFinished.model_validate_json(message.value), message.partition)
        else:
            await self._exporter.export(SnapshotCommand.model_validate_json(message.value), message.partition)

    async def _take_control(self, message: Any) -> None:
        topic = self._topics[message.topic]
        await self._coordinator.take(topic, message.partition, message.offset, message.key, message.value)

    def _agent(self, topics: tuple[Topic, ...], handle: Handler, *, buffered: int | None = None) -> None:
        names = [topic.named(self._settings.kafka.topic_prefix) for topic in topics]
        channel = self._app.topic(
            *names, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", maxsize=buffered
        )

        async def agent(stream: Any) -> None:
            # Partitions wait for the brokers side by side; within one, messages are handled in their order.
            lanes: dict[int, asyncio.Task[None]] = {}
            try:
                async for event in stream.noack().events():
                    partition = event.message.partition
                    if partition in lanes:
                        await lanes[partition]
                    lanes[partition] = asyncio.create_task(self._take(handle, event))
            finally:
                # What a stopping worker does not finish in time is delivered again.
                for task in (await asyncio.wait(lanes.values(), timeout=_DRAIN_SECONDS))[1] if lanes else ():
                    task.cancel()

        self._app.agent(channel, name=f"take-{topics[0].label}")(agent)

    async def _take(self, handle: Handler, event: Any) -> None:
        message = event.message
        with _fatal(message.topic):
            done = await self._handled(handle, message)
        # After a rebalance the offset may be someone else's, or be delivered to us a second time.
        if done and self._is_current(message):
            event.ack()

    async def _handled(self, handle: Handler, message: Any) -> bool:
        while self._is_current(message):
            try:
                await handle(message)
            except PartitionLostError as error:
                # Either a rebalance is under way, or the table's assignment is yet to follow that of the events.
                _log.info("not the owner", reason=str(error), topic=message.topic, offset=message.offset)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return True
        return False

    def _is_current(self, message: Any) -> bool:
        return bool(message.generation_id == self._app.consumer_generation_id)

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
        done = await keep_up(self._sets, partition, now())
        if done != Upkept():
            _log.info("segments rewritten", partition=partition, **asdict(done))

    async def _report(self, partition: int) -> None:
        for rule in self._settings.policy.rules:
            await self._exporter.report(rule, partition)

    async def _revoked(self, _app: Any, revoked: set[TP], **_: Any) -> None:
        for tp in revoked:
            self._taken.pop(tp, None)
        await self._partitions_changed()

    async def _stopped(self, *_: Any, **__: Any) -> None:
        await self._reader.close()

    async def _partitions_changed(self, *_: object) -> None:
        self._sets.forget()

    # ── Offsets ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _taken_to(self, topic: Topic, partition: int) -> int:
        tp = TP(topic.named(self._settings.kafka.topic_prefix), partition)
        consumer: Any = self._app.consumer
        return self._taken.get(tp) or consumer._committed_offset.get(tp) or 0


@contextmanager
def _fatal(where: str) -> Iterator[None]:
    """Ends the process on what nobody foresaw: Faust would acknowledge the event and go on without it."""
    try:
        yield
    except asyncio.CancelledError:
        raise
    except Exception:
        _log.exception("cannot go on", where=where)
        os._exit(_EXIT_BROKEN)
