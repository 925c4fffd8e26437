"""Publishes the API's events, each acknowledged by all replicas, with an entry in ``audit`` before it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from api.problems import unavailable
from api.view.requests import Place
from foldtune.errors import NoBrokerError
from foldtune.events import AuditEntry, Event
from foldtune.kafka import BOOTSTRAP_SECONDS
from foldtune.settings import KafkaSettings
from foldtune.topics import MAX_RECORD_BYTES, Topic
from streams.partitions.connection import aiokafka_options

# Below the time of a call.
_DELIVERY_SECONDS = 15.0
_REQUEST_MS = 5_000

_log = structlog.get_logger(__name__)


class EventPublisher:
    """Publishes events; connects with ``start``."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect; raises ``NoBrokerError``."""
        self._producer = AIOKafkaProducer(
            **aiokafka_options(self._settings),
            acks="all",
            max_request_size=MAX_RECORD_BYTES,
            request_timeout_ms=_REQUEST_MS,
        )
        try:
            async with asyncio.timeout(BOOTSTRAP_SECONDS):
                await self._producer.start()
        except (KafkaError, TimeoutError) as error:
            raise NoBrokerError(self._settings.bootstrap_servers) from error

    async def publish(self, topic: Topic, event: Event, key: str) -> Place:
        """Publish an event and wait for its acknowledgement; where it stands.

        Raises:
            ProblemError: 503, there was none in time; perhaps it was published.
        """
        [place] = await self._send(topic, event, [{"key": key.encode()}])
        return place

    async def broadcast(self, topic: Topic, event: Event, partitions: int) -> None:
        """Publish an event to each of the topic's partitions; raises like ``publish``."""
        await self._send(topic, event, [{"partition": number} for number in range(partitions)])

    async def _send(self, topic: Topic, event: Event, places: Sequence[dict[str, Any]]) -> list[Place]:
        if self._producer is None:
            raise unavailable()
        name = topic.named(self._settings.topic_prefix)
        try:
            async with asyncio.timeout(_DELIVERY_SECONDS):
                value = event.encode()
                sent = await asyncio.gather(*(self._producer.send_and_wait(name, value, **place) for place in places))
                return [Place(record.partition, record.offset) for record in sent]
        except (KafkaError, TimeoutError) as error:
            _log.warning("event not published", topic=name, error=f"{type(error).__name__}: {error}")
            raise unavailable() from error

    async def close(self) -> None:
        """Disconnect; what is not acknowledged is given up, as its caller was told so."""
        if self._producer:
            await self._producer.stop()


class Auditor:
    """Writes to ``audit`` who does what, before it is done: what cannot be written is not done."""

    def __init__(self, publisher: EventPublisher) -> None:
        self._publisher = publisher

    async def write(self, entry: AuditEntry) -> None:
        """Write an entry; raises ``ProblemError`` (503) if it is not acknowledged."""
        await self._publisher.publish(Topic.AUDIT, entry, entry.target)
