"""A worker's metrics, without servers."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry

from foldtune.settings import Sets
from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.broker_reader import BrokerReader
from streams.training_sets.state_events import ChatLog, StateRecord
from streams.training_sets.store import TrainingSets
from streams.worker.broker_monitor import BrokerMonitor
from streams.worker.owned_partitions import OwnedPartitions
from tests.memory_table import MemoryTable
from tests.support import folder_history


class Brokers:
    """Has these end offsets; does not respond with ``None``."""

    def __init__(self, ends: Mapping[int, int] | None) -> None:
        self.end_by_partition = ends
        self.connections = 1

    async def end_offsets(self, partition: int, _: Sequence[Topic]) -> dict[Topic, int]:
        if self.end_by_partition is None:
            raise KafkaConnectionError
        return {Topic.CHAT_LOGS: self.end_by_partition[partition]}

    async def close(self) -> None:
        self.connections += 1


async def poll_once(monitor: BrokerMonitor) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(monitor.run(), 0.05)


def test_lag_counts_unconsumed_records_of_owned_partitions() -> None:
    owned = [0, 2]
    brokers = Brokers({0: 10, 2: 5})
    monitor = BrokerMonitor(
        cast(BrokerReader, brokers), lambda: owned, lambda _topic, partition: {0: 7, 2: 5}[partition]
    )
    asyncio.run(poll_once(monitor))
    no_lag = {(topic, partition): 0 for topic in DATA_TOPICS for partition in owned}
    assert monitor.lag == no_lag | {(Topic.CHAT_LOGS, 0): 3}


def test_unresponsive_brokers_leave_the_last_lag() -> None:
    brokers = Brokers({0: 10})
    monitor = BrokerMonitor(cast(BrokerReader, brokers), lambda: [0], lambda *_: 7)
    asyncio.run(poll_once(monitor))
    brokers.end_by_partition = None
    asyncio.run(poll_once(monitor))
    assert monitor.lag[Topic.CHAT_LOGS, 0] == 3
    assert brokers.connections == 2


def log(folder_id: str, number: int) -> StateRecord:
    *_, (_, event) = folder_history(folder_id, number + 1)
    return StateRecord(number, 0, msgspec.json.decode(event.encode(), type=ChatLog), 100)


def test_folders_are_exported_from_memory_and_only_of_owned_partitions() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    owned = [0, 1]
    registry = CollectorRegistry()
    lag = {(Topic.CHAT_LOGS, 1): 4}
    registry.register(OwnedPartitions(lambda: owned, sets.cached_segments, lambda: lag, lambda: 0.0))

    def exported(name: str, **labels: Any) -> float | None:
        return registry.get_sample_value(name, labels)

    assert exported("foldtune_segments", partition="0") is None
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [log("alpha", 0), log("alpha", 1), log('"; {x}\n', 2)]))
    asyncio.run(sets.add(1, Topic.CHAT_LOGS, [log("alpha", 0)]))
    assert exported("foldtune_folder_logs", folder="alpha") == 3
    assert exported("foldtune_folder_logs", folder='"; {x}\n') == 1
    assert exported("foldtune_segments", partition="0") == 2
    assert exported("foldtune_lag_records", topic="chat-logs", partition="1") == 4
    owned.remove(1)
    assert exported("foldtune_folder_logs", folder="alpha") == 2
    assert exported("foldtune_segments", partition="1") is None
    assert exported("foldtune_lag_records", topic="chat-logs", partition="1") is None
    assert exported("foldtune_partitions_owned") == 1
