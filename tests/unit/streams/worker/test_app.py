"""What a worker repeats, and what ends it."""

import asyncio
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NoReturn, cast
from unittest import mock

import aiokafka.consumer.fetcher
import faust
import kafka.consumer.fetcher
import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from faust.exceptions import ProducerSendError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from kafka.record import MemoryRecordsBuilder
from structlog.testing import capture_logs

from foldtune import events
from foldtune.object_store import ObjectStore
from foldtune.settings import Sets, Settings, WorkerSettings
from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.broker_clock import BrokerClock
from streams.partitions.positions import Position, position_changes
from streams.training_sets.state_events import ChatLog, StateRecord
from streams.training_sets.store import TrainingSets
from streams.worker import app
from streams.worker.app import create_app
from streams.worker.process import _WorkerProcess
from streams.worker.watchdog import Standstill
from tests.acknowledgement import acknowledgement
from tests.memory_table import MemoryTable


class ProcessEndedError(Exception):
    """In place of the end of the process."""


def wrapped(cause: Exception) -> ProducerSendError:
    error = ProducerSendError()
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "exits"),
    [
        (KafkaTimeoutError(), []),
        (wrapped(KafkaTimeoutError()), []),
        (wrapped(MessageSizeTooLargeError()), [70]),
        (OSError("no space left on device"), [70]),
    ],
)
def test_work_is_repeated_while_the_brokers_are_at_fault_and_anything_else_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, error: Exception, exits: list[int]
) -> None:
    codes: list[int] = []
    calls: list[None] = []

    def end(code: int) -> NoReturn:
        codes.append(code)
        raise ProcessEndedError

    async def work() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise error

    monkeypatch.setattr(app, "LOOK_SECONDS", 0)
    monkeypatch.setattr(os, "_exit", end)
    with suppress(ProcessEndedError):
        asyncio.run(app._keep_running("consumer", work))
    assert codes == exits
    assert len(calls) == (1 if exits else 2)


def test_nothing_is_sent_again_after_the_session() -> None:
    conf = create_app(Settings(), cast(ObjectStore, None)).conf
    assert conf.producer_request_timeout * 2 <= conf.broker_session_timeout == 30


def test_what_is_acknowledged_is_on_all_replicas() -> None:
    assert create_app(Settings(), cast(ObjectStore, None)).conf.producer_acks == -1


@pytest.mark.parametrize(("instance_id", "sent"), [("", None), ("worker-1", "worker-1")])
def test_a_worker_without_a_name_is_no_static_member(instance_id: str, sent: str | None) -> None:
    settings = Settings(worker=WorkerSettings(instance_id=instance_id))
    assert create_app(settings, cast(ObjectStore, None)).conf.consumer_group_instance_id == sent


def test_a_worker_stays_in_its_group_while_it_recovers_nothing() -> None:
    # Faust fetches nothing then, after which aiokafka would leave the group, for ever.
    year = timedelta(days=365).total_seconds()
    assert create_app(Settings(), cast(ObjectStore, None)).conf.broker_max_poll_interval > year


@pytest.mark.parametrize("library", [aiokafka.consumer.fetcher, kafka.consumer.fetcher])
def test_what_a_worker_reads_with_is_bounded(library: Any) -> None:
    builder = MemoryRecordsBuilder(2, compression_type=4, batch_size=10_000)
    builder.append(timestamp=None, key=b"k", value=bytes(1_000), headers=[])
    builder.close()
    # Damaged is treated like too large, and quicker to make.
    damaged = bytes(builder.buffer()[:61]) + bytes(len(builder.buffer()) - 61)
    (record,) = library.MemoryRecords(damaged).next_batch()
    assert (record.key, record.value) == (None, None)


WRITTEN = datetime(2026, 11, 26, tzinfo=UTC)
DAY, YEAR = timedelta(days=1), timedelta(days=365)


@pytest.mark.parametrize("skew", [YEAR, -YEAR])
@pytest.mark.parametrize("stamped", [None, True, False])
def test_what_is_too_old_is_evicted_by_the_least_of_the_brokers_and_the_machines_time(
    monkeypatch: pytest.MonkeyPatch, skew: timedelta, stamped: bool | None
) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    sets = TrainingSets(MemoryTable(), Sets(max_age=30 * DAY))
    monkeypatch.setattr(components, "_sets", sets)
    monkeypatch.setattr(components, "_table", sets.table)
    clock = BrokerClock()
    monkeypatch.setattr(app, "CLOCK", clock)
    log = ChatLog(log_id="l", occurred_at=WRITTEN, agent_id="a", question="Why?", folder_id="f")

    async def evicted_at(moment: datetime, newest: datetime) -> bool:
        """Whether the log is, when the brokers have this time, and the newest record of the partition that one."""
        monkeypatch.setattr(events, "now", lambda: moment + skew)
        if stamped is not None:
            clock.observe(acknowledgement(moment, stamped=stamped))
        position = Position(1, int(newest.timestamp() * 1000))
        await sets.write(0, position_changes(Topic.CHAT_LOGS, position))
        await components._maintain(0)
        return not sets.view(0).segments

    async def scenario() -> None:
        await sets.add(0, Topic.CHAT_LOGS, [StateRecord(offset=0, position=0, event=log, size=1)])
        assert not await evicted_at(WRITTEN + 30 * DAY, newest=WRITTEN)
        # In the grace of a day.
        assert not await evicted_at(WRITTEN + 30 * DAY, newest=WRITTEN + 30 * DAY)
        # Not before a broker has stamped a record of that time or, by producers' times, the partition has one; nor
        # before the machine's time, however far the others are ahead.
        ahead = skew > 0 * DAY
        assert await evicted_at(WRITTEN + 32 * DAY, newest=WRITTEN) is (bool(stamped) and ahead)
        assert await evicted_at(WRITTEN + 32 * DAY, newest=WRITTEN + 32 * DAY) is ahead

    asyncio.run(scenario())


def test_requests_that_are_not_handled_are_a_standstill_and_progress_of_any_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    offsets = {(topic, partition): 0 for topic in app._CONTROL_TOPICS for partition in (0, 1)}
    monkeypatch.setattr(components, "_owned_partitions", lambda: [0, 1])
    monkeypatch.setattr(components._control, "next_offset", lambda *of: offsets[of])
    assert components._due() == {}
    components._broker_monitor.lag = {(Topic.FINE_TUNE_REQUESTS, 1): 1}
    ((what, stuck),) = components._due().items()
    assert what == "handling of requests"
    assert components._due() == {what: stuck}
    # The coordinator handles one event at a time, of whichever partition.
    offsets[Topic.TRAINING_REPORTS, 0] = 1
    assert components._due()[what] != stuck
    # What has ended is read before the first of them.
    _, stuck = components._due().popitem()
    components._coordinator.statuses_read += 1
    assert components._due()[what] != stuck
    components._broker_monitor.lag = {(Topic.FINE_TUNE_REQUESTS, 2): 1}
    assert components._due() == {}


@pytest.mark.parametrize("handles", [True, False])
def test_the_lag_of_what_a_worker_handles_is_measured(handles: bool) -> None:
    settings = Settings(worker=WorkerSettings(handle_requests=handles))
    monitored = set(cast(Any, create_app(settings, cast(ObjectStore, None))).components._broker_monitor._topics)
    assert monitored == {*DATA_TOPICS, *(app._CONTROL_TOPICS if handles else ())}


def test_a_worker_without_partitions_stands_still_unless_the_group_has_none_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    monkeypatch.setattr(components, "_owned_partitions", list)
    faust_app = app_in_group()
    faust_app.tables._recovery = SimpleNamespace(active_offsets={"changelog": 7})
    monkeypatch.setattr(components, "_app", faust_app)
    assert components._due() == {}
    faust_app.rebalancing = True
    assert components._due() == {"partitions": (7,)}
    faust_app.tables._recovery.active_offsets["changelog"] = 8
    assert components._due() == {"partitions": (8,)}


def test_a_worker_that_stands_still_for_a_session_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    monkeypatch.setattr(components, "_app", app_in_group())
    assert components._not_ready() is None
    components._watchdog.longest = Standstill("handling of requests", 30.0)
    assert components._not_ready() is None
    components._watchdog.longest = Standstill("handling of requests", 30.5)
    assert components._not_ready() == "no progress for 30 s: handling of requests"


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Why the process would have ended."""
    reasons: list[tuple[object, ...]] = []

    def end(*why: object, **details: object) -> NoReturn:
        reasons.append((*why, *details.values()))
        raise ProcessEndedError

    monkeypatch.setattr(app, "exit_standing_still", end)
    # Other tests in this process may have told the clock the time.
    monkeypatch.setattr(app, "CLOCK", BrokerClock())
    return reasons


def test_a_worker_that_lost_its_membership_ends(
    monkeypatch: pytest.MonkeyPatch, ends: list[tuple[object, ...]]
) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    monkeypatch.setattr(components._membership, "error", lambda: "[Error 82] FencedInstanceIdError")
    with pytest.raises(ProcessEndedError):
        asyncio.run(asyncio.wait_for(components._watch(), 5))
    assert ends == [("membership in the group", 0, "[Error 82] FencedInstanceIdError")]


def test_a_worker_ends_after_two_sessions_of_standstill(
    monkeypatch: pytest.MonkeyPatch, ends: list[tuple[object, ...]]
) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    monkeypatch.setattr(app, "LOOK_SECONDS", 0)
    monkeypatch.setattr(components._membership, "attach", lambda: True)
    monkeypatch.setattr(components, "_due", dict)
    looked_at: list[dict[str, object]] = []
    standstills = iter([59.0, 60.0, 61.0])

    def look(due: dict[str, object], *_: object) -> Standstill:
        looked_at.append(due)
        return Standstill("membership in the group", next(standstills))

    monkeypatch.setattr(components._watchdog, "look", look)
    with pytest.raises(ProcessEndedError):
        asyncio.run(asyncio.wait_for(components._watch(), 5))
    # A group that confirms nothing is a standstill, too.
    assert looked_at == 3 * [{"membership in the group": 0}]
    assert ends == [("membership in the group", 61.0)]


def test_a_block_of_invalid_records_proceeds_by_its_dead_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    monkeypatch.setattr(components, "_owned_partitions", lambda: [0])
    monkeypatch.setattr(components._data, "next_offset", lambda *_: 5)
    components._broker_monitor.lag = {(Topic.CHAT_LOGS, 0): 1}
    ((what, stuck),) = components._due().items()
    assert (what, stuck) == ("ingest of chat-logs/0", components._due()[what])
    components._publisher.dead_letters += 1
    assert components._due()[what] != stuck


def test_a_worker_whose_consumer_has_ended_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    running, ended = (cast(Any, SimpleNamespace(done=lambda done=done: done)) for done in (False, True))
    monkeypatch.setattr(components, "_consumer_tasks", [running])
    assert components._unhealthy() is None
    monkeypatch.setattr(components, "_consumer_tasks", [running, ended])
    assert components._unhealthy() == "a consumer has ended"


def test_a_worker_whose_brokers_do_not_answer_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    monkeypatch.setattr(components, "_app", app_in_group())
    monkeypatch.setattr(components._broker_monitor, "unresponsive_seconds", lambda: 21.0)
    assert components._not_ready() == "the brokers have not answered for 21 s"


def app_in_group() -> Any:
    """As much of Faust's application as is looked at: a member of its group, without partitions."""
    return SimpleNamespace(
        rebalancing=False,
        in_recovery=False,
        tables=SimpleNamespace(actives_ready=True, _recovery=None),
        assignor=SimpleNamespace(assigned_actives=set),
    )


def test_no_fetch_of_the_group_consumer_holds_up_a_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    created = SimpleNamespace(_fetch_max_wait_ms=1_500)
    monkeypatch.setattr(AIOKafkaConsumerThread, "_create_worker_consumer", lambda *_: created)
    monkeypatch.setattr(AIOKafkaConsumerThread, "__init__", lambda *_, **__: None)
    kind = cast(Any, create_app(Settings(), cast(ObjectStore, None))).transport.Consumer
    thread = kind._new_consumer_thread(SimpleNamespace(loop=None, beacon=None))
    assert thread._create_worker_consumer(None)._fetch_max_wait_ms == 100


@pytest.mark.parametrize(("stopped_at", "code"), [(None, 1), (1.0, 0)])
def test_what_a_signal_interrupts_at_the_start_is_no_error(
    monkeypatch: pytest.MonkeyPatch, stopped_at: float | None, code: int
) -> None:
    monkeypatch.setattr(faust.Worker, "execute_from_commandline", lambda _: sys.exit(1))
    worker = object.__new__(_WorkerProcess)
    worker._signal_stop_time = stopped_at
    with pytest.raises(SystemExit) as raised:
        worker.execute_from_commandline()
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("first", "later", "refused"), [(0 * DAY, YEAR, False), (YEAR, 0 * DAY, True), (-YEAR, 0 * DAY, True)]
)
def test_a_worker_whose_clock_is_wrong_when_it_starts_is_refused_in_one_line_that_names_both_times(
    monkeypatch: pytest.MonkeyPatch, first: timedelta, later: timedelta, refused: bool
) -> None:
    components = cast(Any, create_app(Settings(), cast(ObjectStore, None))).components
    clock = BrokerClock()
    monkeypatch.setattr(app, "CLOCK", clock)
    codes: list[int] = []

    def end(code: int) -> NoReturn:
        codes.append(code)
        raise ProcessEndedError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(app, "LOOK_SECONDS", 0)
    # Stamped by a producer, it tells nothing.
    clock.observe(acknowledgement(WRITTEN + YEAR, stamped=False))
    for skew in (first, later):
        monkeypatch.setattr("streams.partitions.broker_clock.time.time", (WRITTEN + skew).timestamp)
        clock.observe(acknowledgement(WRITTEN))
    monkeypatch.setattr(components._watchdog, "look", mock.Mock(side_effect=ProcessEndedError))
    with pytest.raises(ProcessEndedError), capture_logs() as logs:
        asyncio.run(asyncio.wait_for(components._watch(), 5))
    assert codes == ([2] if refused else [])
    told = [(log["clock"], log["brokers_clock"]) for log in logs if "refusing to start" in log["event"]]
    assert told == ([((WRITTEN + first).isoformat(), WRITTEN.isoformat())] if refused else [])
