"""Which requests were cancelled, as published by the coordinator."""

from typing import Any

import structlog
from kafka import TopicPartition
from pydantic import ValidationError

from foldtune.events import FineTuneStatus, State

log = structlog.get_logger(__name__)


class Cancellations:
    """Reads ``fine-tune-status`` from its beginning; the topic is compacted, so that is one status per request."""

    def __init__(self, consumer: Any, topic: str) -> None:
        """``consumer`` belongs to no group and has no topics yet."""
        self._consumer = consumer
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        self._cancelled: set[str] = set()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._cancelled

    def refresh(self) -> None:
        """Read what is available, without waiting for more."""
        self._poll(timeout_ms=0)

    def catch_up(self) -> None:
        """Read up to the present end, so that no job is started whose request was cancelled before."""
        ends = self._consumer.end_offsets(self._consumer.assignment())
        while any(self._consumer.position(partition) < end for partition, end in ends.items()):
            self._poll(timeout_ms=200)

    def _poll(self, timeout_ms: int) -> None:
        for records in self._consumer.poll(timeout_ms=timeout_ms).values():
            for record in records:
                self._add(record)

    def _add(self, record: Any) -> None:
        if record.value is None:
            return
        try:
            status = FineTuneStatus.model_validate_json(record.value)
        except ValidationError as error:
            log.warning(
                "invalid status skipped",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=f"{error.error_count()} validation errors",
            )
            return
        if status.state is State.CANCELLED:
            self._cancelled.add(status.request_id)
