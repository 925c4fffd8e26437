"""Kafka clients made from the settings, and the one rule of which partition a key belongs to."""

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError
from kafka.partitioner.default import murmur2
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from foldtune.errors import NoBrokerError, PartitionCountError, PublishError
from foldtune.events import Event
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic

# A dead letter is an event of up to the broker's limit plus what was wrong with it.
MAX_REQUEST_BYTES = 2 * 1024 * 1024
DELIVERY_SECONDS = 30
# A broker may keep replaced and deleted values for weeks, longer where little is written; erased words must go sooner.
# And it never compacts the newest segment of a partition, which it lets grow to 1 GiB by default.
_CHANGELOG = {
    "cleanup.policy": "compact",
    "max.compaction.lag.ms": str(24 * 3600 * 1000),
    "segment.bytes": str(64 << 20),
    "max.message.bytes": str(MAX_REQUEST_BYTES),
}
# A wrong address is a common mistake, and half a minute of silence says nothing.
BOOTSTRAP_SECONDS = 8


def partition_of(key: str, partitions: int) -> int:
    """The partition that Kafka's Java client, kafka-python and aiokafka choose for ``key``."""
    return int((murmur2(key.encode()) & 0x7FFFFFFF) % partitions)


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Address and credentials of the brokers, in the options that kafka-python and aiokafka share.

    ``streams.worker.app`` makes Faust's from them.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
        }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _tls_context(settings)
    return options


def _tls_context(settings: KafkaSettings) -> ssl.SSLContext:
    """Verifies the broker against the named (else the system's) authorities; with a certificate, proves who we are."""
    context = ssl.create_default_context(cafile=settings.ssl_cafile)
    if settings.ssl_certfile:
        password = settings.ssl_key_password
        context.load_cert_chain(
            settings.ssl_certfile, settings.ssl_keyfile, password.get_secret_value() if password else None
        )
    return context


def _connected(client: Callable[..., Any], settings: KafkaSettings, *topics: str, **options: Any) -> Any:
    """A client of kafka-python that has reached a broker.

    Raises:
        NoBrokerError: none answers within ``BOOTSTRAP_SECONDS``.
    """
    try:
        return client(
            *topics, **client_options(settings), bootstrap_timeout_ms=int(BOOTSTRAP_SECONDS * 1000), **options
        )
    except KafkaTimeoutError as error:
        raise NoBrokerError(settings.bootstrap_servers) from error


class Publisher:
    """Publishes events and returns only when the brokers have them; making one raises ``NoBrokerError``."""

    def __init__(self, settings: KafkaSettings, delivery_seconds: int = DELIVERY_SECONDS) -> None:
        self._settings = settings
        self._delivery_seconds = delivery_seconds
        self._producer = _connected(
            KafkaProducer,
            settings,
            acks="all",
            linger_ms=5,
            max_request_size=MAX_REQUEST_BYTES,
            delivery_timeout_ms=delivery_seconds * 1000,
            max_block_ms=delivery_seconds * 1000,
            request_timeout_ms=10_000,
        )
        self._pending: list[tuple[str, Any]] = []

    def send(self, topic: Topic, event: Event, *, key: str, partition_by: str | None = None) -> None:
        """Hand over one event; ``flush`` waits for it. ``partition_by`` places it by another value than its key."""
        self.send_raw(topic, event.encode(), key=key, partition_by=partition_by)

    def send_raw(
        self,
        topic: Topic,
        value: bytes | None,
        *,
        key: str | bytes | None,
        partition_by: str | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Any:
        """Like ``send``, for bytes that are an event already, or that never were one.

        Returns kafka-python's future of where the record landed, which is known once ``flush`` has returned.

        Raises:
            PublishError: the brokers cannot be reached, or the message is too large for the client.
        """
        name = topic.named(self._settings.topic_prefix)
        if partition_by is not None:
            partition = partition_of(partition_by, len(self._producer.partitions_for(name)))
        raw_key = key.encode() if isinstance(key, str) else key
        return self._hand_over(name, value=value, key=raw_key, partition=partition, headers=list(headers))

    def broadcast(self, topic: Topic, event: Event) -> None:
        """Like ``send``, once to every partition."""
        name = topic.named(self._settings.topic_prefix)
        for partition in sorted(self._producer.partitions_for(name)):
            self._hand_over(name, value=event.encode(), partition=partition)

    def _hand_over(self, name: str, **message: Any) -> Any:
        try:
            future = self._producer.send(name, **message)
        except KafkaError as error:
            raise PublishError(name, error) from error
        self._pending.append((name, future))
        return future

    def flush(self) -> None:
        """Wait until everything handed over is acknowledged.

        Raises:
            PublishError: something was not, within the delivery time; the topic and the reason are named.
        """
        pending, self._pending = self._pending, []
        for topic, future in pending:
            try:
                future.get(timeout=self._delivery_seconds + 5)
            except KafkaError as error:
                raise PublishError(topic, error) from error

    def publish(self, topic: Topic, event: Event, *, key: str, partition_by: str | None = None) -> None:
        """Send one event and wait for it; raises like ``flush``."""
        self.send(topic, event, key=key, partition_by=partition_by)
        self.flush()

    def close(self) -> None:
        """Flush what is left and disconnect."""
        try:
            self.flush()
        finally:
            self._producer.close(timeout=self._delivery_seconds)

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def consumer(settings: KafkaSettings, *topics: Topic, group: str | None = None, **options: Any) -> Iterator[Any]:
    """A kafka-python consumer of ``topics`` that starts at the earliest event and commits only when told.

    Raises:
        NoBrokerError: no broker answers.
    """
    client = _connected(
        KafkaConsumer,
        settings,
        *(topic.named(settings.topic_prefix) for topic in topics),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **options,
    )
    try:
        yield client
    finally:
        client.close()


def create_topics(settings: KafkaSettings, topics: tuple[Topic, ...], changelogs: tuple[str, ...] = ()) -> None:
    """Create what is missing, and check that what is there has the partitions that co-partitioning needs.

    ``changelogs`` are names of topics that keep a table's state.

    Raises:
        NoBrokerError: no broker answers.
        PartitionCountError: an existing topic has another number of partitions than the settings say.
    """
    configs = {topic.named(settings.topic_prefix): topic.config for topic in topics}
    configs |= dict.fromkeys(changelogs, _CHANGELOG)
    admin = _connected(KafkaAdminClient, settings)
    try:
        for name, config in configs.items():
            new = NewTopic(
                name=name,
                num_partitions=settings.partitions,
                replication_factor=settings.replication_factor,
                topic_configs=config,
            )
            _unless_there(admin, new)
        found = _partition_counts(admin, list(configs))
    finally:
        admin.close()
    for name, count in found.items():
        if count != settings.partitions:
            raise PartitionCountError(name, count, settings.partitions)


# A topic that was created a moment ago is not known to every broker yet, and then shows no partitions.
@retry(retry=retry_if_result(lambda found: 0 in found.values()), wait=wait_fixed(0.2), stop=stop_after_delay(15))
def _partition_counts(admin: KafkaAdminClient, names: list[str]) -> dict[str, int]:
    return {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(names)}


def _unless_there(admin: KafkaAdminClient, topic: NewTopic) -> None:
    try:
        admin.create_topics([topic], timeout_ms=15_000)
    except TopicAlreadyExistsError:
        return
