"""What operators are told, without servers."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import msgspec
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry

from foldtune.settings import Sets
from foldtune.topics import DATA_TOPICS, Topic
from streams.partitions.broker_reader import BrokerReader
from streams.training_sets.decoding import Record
from streams.training_sets.state_events import ChatLog
from streams.training_sets.store import TrainingSets
from streams.worker.broker_monitor import BrokerMonitor
from streams.worker.owned_partitions import OwnedPartitions
from tests.memory_table import MemoryTable
from tests.support import folder_history


class Brokers:
    """Answers as told; ``None`` is no answer."""

    def __init__(self, ends: Mapping[int, int] | None) -> None:
        self.ends_by_partition = ends

    async def end_offsets(self, partition: int) -> dict[Topic, int]:
        if self.ends_by_partition is None:
            raise KafkaConnectionError
        return {Topic.CHAT_LOGS: self.ends_by_partition[partition]}


async def measured(watch: BrokerMonitor) -> None:
    """Have the watch ask once."""
    with suppress(TimeoutError):
        await asyncio.wait_for(watch.run(), 0.05)


def test_lag_is_what_is_published_and_not_taken_in_of_owned_partitions() -> None:
    owned = [0, 2]
    brokers = Brokers({0: 10, 2: 5})
    watch = BrokerMonitor(cast(BrokerReader, brokers), lambda: owned, lambda _topic, partition: {0: 7, 2: 5}[partition])
    asyncio.run(measured(watch))
    nothing = {(topic, partition): 0 for topic in DATA_TOPICS for partition in owned}
    assert watch.lag == nothing | {(Topic.CHAT_LOGS, 0): 3}


def test_without_an_answer_the_last_lag_stays_and_nothing_ends() -> None:
    brokers = Brokers({0: 10})
    watch = BrokerMonitor(cast(BrokerReader, brokers), lambda: [0], lambda *_: 7)
    asyncio.run(measured(watch))
    brokers.ends_by_partition = None
    asyncio.run(measured(watch))
    assert watch.lag[Topic.CHAT_LOGS, 0] == 3


def log(folder_id: str, number: int) -> Record:
    *_, (_, event) = folder_history(folder_id, number + 1)
    return Record(number, 0, msgspec.json.decode(event.encode(), type=ChatLog), 100)


def test_folders_are_shown_from_memory_and_only_of_owned_partitions() -> None:
    sets = TrainingSets(MemoryTable(), Sets())
    owned = [0, 1]
    registry = CollectorRegistry()
    registry.register(OwnedPartitions(lambda: owned, sets.known, lambda: {(Topic.CHAT_LOGS, 1): 4}))

    def shown(name: str, **labels: Any) -> float | None:
        return registry.get_sample_value(name, labels)

    assert shown("foldtune_segments", partition="0") is None
    asyncio.run(sets.add(0, Topic.CHAT_LOGS, [log("alpha", 0), log("alpha", 1), log('"; {x}\n', 2)]))
    asyncio.run(sets.add(1, Topic.CHAT_LOGS, [log("alpha", 0)]))
    assert shown("foldtune_folder_logs", folder="alpha") == 3
    assert shown("foldtune_folder_logs", folder='"; {x}\n') == 1
    assert shown("foldtune_segments", partition="0") == 2
    assert shown("foldtune_lag_records", topic="chat-logs", partition="1") == 4
    owned.remove(1)
    assert shown("foldtune_folder_logs", folder="alpha") == 2
    assert shown("foldtune_segments", partition="1") is None
    assert shown("foldtune_lag_records", topic="chat-logs", partition="1") is None
    assert shown("foldtune_partitions_owned") == 1
