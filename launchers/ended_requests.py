"""Which requests have ended, as published by the coordinator: their jobs do not start, and their runs are stopped."""

import time
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from pydantic import ValidationError

from foldtune.events import FineTuneStatus, State
from foldtune.reasons import explain

log = structlog.get_logger(__name__)

CATCH_UP_SECONDS = 30.0


class EndedRequests:
    """Reads ``fine-tune-status`` from its beginning; the topic is compacted, so that is one status per request."""

    def __init__(self, consumer: Any, topic: str) -> None:
        """``consumer`` belongs to no group and has no topics yet.

        Raises:
            KafkaError: the brokers do not tell the topic's partitions.
        """
        self._consumer = consumer
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        if not partitions:
            raise KafkaTimeoutError(f"no broker tells the partitions of {topic}")
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        self._ended: dict[tuple[str, str], State] = {}

    def state(self, model: str, request_id: str) -> State | None:
        """The final state of a request, as far as has been read; ``None`` while it has none."""
        return self._ended.get((model, request_id))

    def refresh(self) -> None:
        """Read what is available, without waiting for more."""
        self._poll(timeout_ms=0)

    def catch_up(self) -> None:
        """Read up to the present end, so that no job is started whose request ended before.

        Raises:
            KafkaError: the brokers did not answer in time.
        """
        deadline = time.monotonic() + CATCH_UP_SECONDS
        ends = self._consumer.end_offsets(self._consumer.assignment())
        while any(self._consumer.position(partition) < end for partition, end in ends.items()):
            if time.monotonic() > deadline:
                raise KafkaTimeoutError("fine-tune-status could not be read to its end")
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
                error="; ".join(explain(error)),
            )
            return
        # One that was cancelled may have a training that goes on for others.
        if status.state.terminal and not status.run_continues:
            # The first end counts: a request has one.
            self._ended.setdefault((status.model, status.request_id), status.state)
