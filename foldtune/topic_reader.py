"""Reads a whole topic without a consumer group: from the earliest offset to the current end, or endlessly."""

import time
from collections.abc import Collection, Iterator
from typing import Any

from kafka import TopicPartition

from foldtune.errors import NoBrokerError, TopicMissingError
from foldtune.kafka import POLL_MILLISECONDS, consumer
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic

# Without ``follow``: records that exist come within a second, and those of a broker that is started anew within this.
SILENCE_SECONDS = 30.0


def read(
    settings: KafkaSettings, topic: Topic, *, follow: bool = False, deadline: float | None = None, idle: bool = False
) -> Iterator[Any]:
    """Every ``ConsumerRecord`` of the topic, in order within each partition.

    Ends at the end offsets of the start, or with ``follow`` only at ``deadline`` (of ``time.monotonic()``). With
    ``idle`` there is a ``None`` after each poll that brought nothing.

    Raises:
        TopicMissingError: the topic does not exist.
        NoBrokerError: the brokers sent nothing for ``SILENCE_SECONDS`` before the end was reached.
    """
    with consumer(settings) as client:
        name = topic.named(settings.topic_prefix)
        partitions = [TopicPartition(name, number) for number in sorted(client.partitions_for_topic(name) or ())]
        if not partitions:
            raise TopicMissingError(name)
        client.assign(partitions)
        client.seek_to_beginning(*partitions)
        ends = client.end_offsets(partitions)
        silence = 0.0
        while True:
            began = time.monotonic()
            if deadline is not None and began > deadline:
                return
            if not follow and all(_position(client, partition) >= end for partition, end in ends.items()):
                return
            polled = client.poll(timeout_ms=POLL_MILLISECONDS)
            # Without the time that the caller takes between two records.
            silence = 0.0 if polled else silence + time.monotonic() - began
            if silence > SILENCE_SECONDS and not follow:
                raise NoBrokerError(settings.bootstrap_servers)
            for records in polled.values():
                yield from records
            if idle and not polled:
                yield None


def read_at(settings: KafkaSettings, topic: Topic, places: Collection[tuple[int, int]]) -> Iterator[Any]:
    """The ``ConsumerRecord`` at each (partition, offset) that there is (still), in order within each partition.

    Raises:
        TopicMissingError: the topic does not exist.
        NoBrokerError: the brokers sent nothing for ``SILENCE_SECONDS``.
    """
    with consumer(settings) as client:
        name = topic.named(settings.topic_prefix)
        known = client.partitions_for_topic(name) or ()
        if not known:
            raise TopicMissingError(name)
        for number in sorted({partition for partition, _ in places} & set(known)):
            partition = TopicPartition(name, number)
            client.assign([partition])
            first, end = client.beginning_offsets([partition])[partition], client.end_offsets([partition])[partition]
            wanted = sorted({offset for place, offset in places if place == number and first <= offset < end})
            for offset in wanted:
                client.seek(partition, offset)
                record = _next_record(client, settings)
                if record.offset == offset:
                    yield record


def _next_record(client: Any, settings: KafkaSettings) -> Any:
    began = time.monotonic()
    while time.monotonic() - began < SILENCE_SECONDS:
        for records in client.poll(timeout_ms=POLL_MILLISECONDS, max_records=1).values():
            return records[0]
    raise NoBrokerError(settings.bootstrap_servers)


def _position(client: Any, partition: TopicPartition) -> int:
    # None while no broker has told where the partition begins.
    return client.position(partition, timeout_ms=POLL_MILLISECONDS) or 0
