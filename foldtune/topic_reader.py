"""Reads a whole topic without a consumer group: from the earliest offset to the current end, or endlessly."""

import time
from collections.abc import Iterator
from typing import Any

from kafka import TopicPartition

from foldtune.errors import TopicMissingError
from foldtune.kafka import POLL_MILLISECONDS, consumer
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic


def read(
    settings: KafkaSettings, topic: Topic, *, follow: bool = False, deadline: float | None = None, idle: bool = False
) -> Iterator[Any]:
    """Every ``ConsumerRecord`` of the topic, in order within each partition.

    Ends at the end offsets of the start, or with ``follow`` only at ``deadline`` (of ``time.monotonic()``). With
    ``idle`` there is a ``None`` after each poll that brought nothing.

    Raises:
        TopicMissingError: the topic does not exist.
    """
    with consumer(settings) as client:
        name = topic.named(settings.topic_prefix)
        partitions = [TopicPartition(name, number) for number in sorted(client.partitions_for_topic(name) or ())]
        if not partitions:
            raise TopicMissingError(name)
        client.assign(partitions)
        client.seek_to_beginning(*partitions)
        ends = client.end_offsets(partitions)
        while follow or any(client.position(partition) < end for partition, end in ends.items()):
            if deadline is not None and time.monotonic() > deadline:
                return
            polled = client.poll(timeout_ms=POLL_MILLISECONDS)
            for records in polled.values():
                yield from records
            if idle and not polled:
                yield None
