"""Reads what has happened, and hands it to the webhooks.

One consumer group. A record's offset is committed once each of its notices is delivered or given up, so a notice comes
at least once; a repeated one has the id that it had before.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import structlog
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition
from pydantic import ValidationError

from foldtune.errors import TRANSIENT_ERRORS
from foldtune.excerpts import excerpt
from foldtune.in_flight import InFlightOffsets
from foldtune.kafka import MEMBERSHIP, POLL_MILLISECONDS, consumer
from foldtune.reasons import explain
from foldtune.settings import Settings
from foldtune.topics import Topic
from notifications import metrics
from notifications.delivery import MAX_WAITING, DeliveryQueue
from notifications.notices import Notice, notices
from notifications.webhook import ATTEMPT_SECONDS

log = structlog.get_logger(__name__)

GROUP = "foldtune-notifier"
RETRY_SECONDS = 1.0
# No more records are read while so many wait for webhooks: ten of them do not hold up the others.
MAX_IN_FLIGHT = 10 * MAX_WAITING
TOPICS = (Topic.FINE_TUNE_STATUS, Topic.POLICY_DECISIONS)
# Notices that were told lately: a policy's decisions repeat theirs.
_REMEMBERED = 10_000


class Notifier:
    """Reads ``fine-tune-status`` and ``policy-decisions`` for the webhooks of ``settings``."""

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings, self._stop = settings, stop
        chosen = settings.notifications
        seconds = chosen.retry_for.total_seconds()
        self._queues: Sequence[DeliveryQueue] = [DeliveryQueue(webhook, seconds, stop) for webhook in chosen.webhooks]
        self._offsets: dict[TopicPartition, InFlightOffsets] = {}
        self._told: OrderedDict[str, tuple[TopicPartition, int]] = OrderedDict()
        self._begun: set[TopicPartition] = set()
        self._lock = threading.Lock()
        self._in_flight = 0

    def run(self) -> None:
        """Notify until ``stop`` is set."""
        kafka = self._settings.kafka
        group = f"{kafka.topic_prefix}{GROUP}"
        while not self._stop.is_set():
            try:
                with consumer(kafka, *TOPICS, group=group, **MEMBERSHIP) as client:
                    while not self._stop.is_set():
                        self._receive(client)
                        self._commit(client)
            except TRANSIENT_ERRORS as error:
                log.warning("transient error, will retry", error=excerpt(str(error)))
                self._stop.wait(RETRY_SECONDS)
                # A new client reads again what is not committed.
                with self._lock:
                    self._offsets.clear()
                self._begun.clear()
        for queue in self._queues:
            queue.join(ATTEMPT_SECONDS)

    def _receive(self, client: Any) -> None:
        assigned = client.assignment()
        with self._lock:
            full = self._in_flight >= MAX_IN_FLIGHT
            # Another member of the group has them now.
            self._offsets = {partition: self._offsets[partition] for partition in self._offsets.keys() & assigned}
        (client.pause if full else client.resume)(*assigned)
        polled = client.poll(timeout_ms=POLL_MILLISECONDS, max_records=500)
        new = self._begin(client)
        for partition, records in polled.items():
            for record in records if partition not in new else ():
                self._accept(partition, record)

    def _begin(self, client: Any) -> set[TopicPartition]:
        """Partitions in which the group has never been: it is not told what happened before it.

        Their end is committed at once, so that a restart goes on from here.
        """
        assigned = client.assignment()
        unknown = assigned - self._begun
        new = {partition for partition in unknown if client.committed(partition) is None}
        for partition, end in (client.end_offsets(new) if new else {}).items():
            client.seek(partition, end)
            client.commit({partition: OffsetAndMetadata(end, "", -1)})
        if unknown:
            log.info("reading", partitions=len(assigned), from_now=len(new))
        self._begun = set(assigned)
        return new

    def _accept(self, partition: TopicPartition, record: Any) -> None:
        with self._lock:
            offsets = self._offsets.setdefault(partition, InFlightOffsets())
            if not offsets.start(record.offset):
                return
        told = [
            (queue, notice)
            for notice in self._notices(partition, record)
            for queue in self._queues
            if queue.wants(notice)
        ]
        left = len(told)

        def settled() -> None:
            nonlocal left
            with self._lock:
                left -= 1
                if left <= 0:
                    self._in_flight -= 1
                    offsets.settle(record.offset)

        with self._lock:
            self._in_flight += 1
        for queue, notice in told:
            queue.put(notice, settled)
        if not told:
            settled()

    def _notices(self, partition: TopicPartition, record: Any) -> list[Notice]:
        """Those that no other record has told."""
        place = partition, record.offset
        try:
            found = list(notices(record.value or b"", change=_is_change(record)))
        except Exception as error:
            # Defects included: it would be read again for ever, and no other after it.
            metrics.UNREADABLE.inc()
            source = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            is_defect = not isinstance(error, ValidationError)
            log.warning("record unreadable", **source, error="; ".join(explain(error)), exc_info=is_defect)
            return []
        new = [notice for notice in found if self._told.setdefault(notice.id, place) == place]
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        return new

    def _commit(self, client: Any) -> None:
        with self._lock:
            positions = {partition: offsets.committable() for partition, offsets in self._offsets.items()}
        for partition, position in positions.items():
            if position is None:
                continue
            try:
                client.commit({partition: OffsetAndMetadata(position, "", -1)})
            except KafkaError as error:
                log.warning("offset not committed", partition=str(partition), error=str(error))
                continue
            with self._lock:
                self._offsets[partition].committed(position)


def _is_change(record: Any) -> bool:
    """Whether it is no copy of a policy's newest decision, which is under the key of the model alone."""
    return b"/" in (record.key or b"")
