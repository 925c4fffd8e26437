"""Kafka clients from the settings, and the partitioner."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.consumer import fetcher
from kafka.errors import (
    CorruptRecordError,
    InvalidRecordError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
)
from kafka.partitioner.default import murmur2

from foldtune.compression import bound_decompression
from foldtune.errors import (
    BrokerRefusesError,
    InvalidSettingsError,
    NoBrokerError,
    PartitionCountError,
    PublishError,
    RecordRefusedError,
)
from foldtune.events import Event
from foldtune.settings import KafkaSettings
from foldtune.tokens import tokens
from foldtune.topics import MAX_RECORD_BYTES, Topic

bound_decompression(fetcher)

DELIVERY_SECONDS = 30
_REQUEST_SECONDS = 10
# For what is left to do once every message is acknowledged or has failed.
_STOP_SECONDS = 5
# A wrong address is a common mistake, which should not take kafka-python's half minute to be reported.
BOOTSTRAP_SECONDS = 8
_LISTENS_SECONDS = 1
# kafka-python would wait up to half a minute between two attempts, after the brokers are back.
RECONNECT_MILLISECONDS = 2_000
# Of a group's member: one that was killed leaves soon; one that is alive sends heartbeats from a background thread.
MEMBERSHIP = {"session_timeout_ms": 15_000, "heartbeat_interval_ms": 4_000}
# The longest wait of one poll for new records.
POLL_MILLISECONDS = 250
# By client or broker, of one record: it is too large for its topic, or the topic takes no such records.
_REFUSALS = (
    CorruptRecordError,
    InvalidRecordError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
)


def partition_of(key: str, partitions: int) -> int:
    """The partition of ``key`` by the default partitioner (murmur2) of the Java client, kafka-python and aiokafka."""
    return int((murmur2(key.encode()) & 0x7FFFFFFF) % partitions)


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Address and credentials of the brokers, as the options of kafka-python.

    ``streams.partitions.connection`` has those of aiokafka.

    Raises:
        InvalidSettingsError: a certificate or key cannot be used, or AWS's region is not known.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.startswith("SASL"):
        if provider := tokens(settings):
            options |= {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": provider}
        else:
            options |= {
                "sasl_mechanism": settings.sasl_mechanism,
                "sasl_plain_username": settings.sasl_username,
                "sasl_plain_password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
            }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _tls_context(settings)
    return options


def _tls_context(settings: KafkaSettings) -> ssl.SSLContext:
    """Verifies the broker against the configured (else the system's) authorities; mutual TLS with a certificate."""
    try:
        context = ssl.create_default_context(cafile=settings.ssl_cafile)
    except (ssl.SSLError, OSError) as error:
        raise InvalidSettingsError(f"kafka.ssl_cafile {settings.ssl_cafile}: {error}") from error
    if settings.ssl_certfile:
        # Without one, OpenSSL would ask at the terminal.
        password = settings.ssl_key_password.get_secret_value() if settings.ssl_key_password else ""
        try:
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password)
        except (ssl.SSLError, OSError) as error:
            files = f"kafka.ssl_certfile {settings.ssl_certfile}, ssl_keyfile {settings.ssl_keyfile}"
            raise InvalidSettingsError(f"{files}, or ssl_key_password: {error}") from error
    return context


def connect(client: Callable[..., Any], settings: KafkaSettings, **options: Any) -> Any:
    """A connected client of kafka-python.

    Raises:
        NoBrokerError: no broker answers within ``BOOTSTRAP_SECONDS``.
        BrokerRefusesError: something listens there, but completes no connection.
    """
    try:
        return client(
            **client_options(settings),
            bootstrap_timeout_ms=int(BOOTSTRAP_SECONDS * 1000),
            reconnect_backoff_max_ms=RECONNECT_MILLISECONDS,
            **options,
        )
    except KafkaTimeoutError as error:
        # kafka-python says in its log why it does not connect, and not in its error.
        listening = any(map(_listens, settings.bootstrap_servers.split(",")))
        raise (BrokerRefusesError if listening else NoBrokerError)(settings.bootstrap_servers) from error


def _listens(server: str) -> bool:
    host, _, port = server.strip().rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LISTENS_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _create_no_topics(cluster: Any) -> None:
    """Have no broker create a topic that a client asks for: it would have the brokers' configuration.

    kafka-python 3.0 takes an option for this, and ignores it.
    """
    cluster.config["allow_auto_create_topics"] = False


class Publisher:
    """Synchronous producer with ``acks=all``: ``flush`` returns when the brokers have acknowledged every message.

    The constructor raises ``NoBrokerError``.
    """

    def __init__(self, settings: KafkaSettings, delivery_seconds: float = DELIVERY_SECONDS) -> None:
        self._settings = settings
        self._delivery_seconds = delivery_seconds
        # An agent need not be told.
        self._expected_partitions = settings.partitions if "partitions" in settings.model_fields_set else None
        self._producer = connect(
            KafkaProducer,
            settings,
            acks="all",
            # kafka-python's idempotent producer does not survive a message that was not delivered in time: it asks for
            # a new producer id and waits for ever. Without it, one request at a time keeps the order.
            enable_idempotence=False,
            max_in_flight_requests_per_connection=1,
            linger_ms=5,
            max_request_size=MAX_RECORD_BYTES,
            delivery_timeout_ms=int(delivery_seconds * 1000),
            max_block_ms=int(delivery_seconds * 1000),
            request_timeout_ms=int(min(_REQUEST_SECONDS, delivery_seconds / 2) * 1000),
        )
        _create_no_topics(self._producer._metadata)
        self._pending: list[tuple[str, Any]] = []

    def send(self, topic: Topic, event: Event, *, key: str, partition_by: str | None = None) -> None:
        """Enqueue one event; ``flush`` waits for it. ``partition_by`` replaces the key as input of the partitioner."""
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
        """Like ``send``, for bytes.

        Returns kafka-python's future of the record's metadata, which is done once ``flush`` has returned.

        Raises:
            PublishError: the brokers do not answer.
            PartitionCountError: the topic has another number of partitions than ``kafka.partitions``, if that is set;
                workers would not read some of them.
            RecordRefusedError: the record is too large; ``flush`` raises it for what the brokers refuse.
        """
        name = topic.named(self._settings.topic_prefix)
        if partition_by is not None:
            partition = partition_of(partition_by, len(self._partitions(name)))
        elif partition is None and self._expected_partitions:
            self._partitions(name)
        raw_key = key.encode() if isinstance(key, str) else key
        return self._enqueue(name, value=value, key=raw_key, partition=partition, headers=list(headers))

    def broadcast(self, topic: Topic, event: Event) -> None:
        """Like ``send``, once to every partition."""
        self.broadcast_raw(topic, event.encode())

    def broadcast_raw(self, topic: Topic, value: bytes) -> list[Any]:
        """Like ``send_raw``, once to every partition; the futures of all."""
        name = topic.named(self._settings.topic_prefix)
        return [self._enqueue(name, value=value, partition=partition) for partition in self._partitions(name)]

    def _partitions(self, name: str) -> list[int]:
        with _publish_errors(name):
            found = sorted(self._producer.partitions_for(name))
        if self._expected_partitions not in {None, len(found)}:
            raise PartitionCountError(name, len(found), self._expected_partitions)
        return found

    def _enqueue(self, name: str, **message: Any) -> Any:
        with _publish_errors(name):
            future = self._producer.send(name, **message)
        self._pending.append((name, future))
        return future

    def flush(self) -> None:
        """Wait until every message is acknowledged or has failed.

        Raises:
            RecordRefusedError: the brokers take none of those that failed.
            PublishError: one was not acknowledged within the delivery time; topic and reason of the first are named,
                and how many there are.
        """
        pending, self._pending = self._pending, []
        deadline = time.monotonic() + self._delivery_seconds + 5
        failed: list[tuple[str, KafkaError]] = []
        for topic, future in pending:
            try:
                future.get(timeout=max(deadline - time.monotonic(), 0))
            except KafkaError as error:
                failed.append((topic, error))
        if failed:
            topic, reason = failed[0]
            refused = all(isinstance(error, _REFUSALS) for _, error in failed)
            kind = RecordRefusedError if refused else PublishError
            raise kind(topic, reason, f"{len(failed)} of {len(pending)} messages") from reason

    def publish(self, topic: Topic, event: Event, *, key: str, partition_by: str | None = None) -> None:
        """Send one event and wait for its acknowledgement; raises like ``flush``."""
        self.send(topic, event, key=key, partition_by=partition_by)
        self.flush()

    def close(self) -> None:
        """Flush and disconnect; raises like ``flush``."""
        try:
            self.flush()
        finally:
            self.abort()

    def abort(self) -> None:
        """Disconnect; messages that are not acknowledged fail at once."""
        # kafka-python's own ``close`` waits for messages without a bound, and raises before it has closed anything.
        self._producer._sender.force_close()
        with suppress(KafkaError):
            self._producer.close(timeout=_STOP_SECONDS)

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _publish_errors(topic: str) -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise (RecordRefusedError if isinstance(error, _REFUSALS) else PublishError)(topic, error) from error


@contextmanager
def consumer(settings: KafkaSettings, *topics: Topic, group: str | None = None, **options: Any) -> Iterator[Any]:
    """A kafka-python consumer of ``topics``, from the earliest offset and without automatic commits.

    Raises:
        NoBrokerError: no broker answers.
    """
    client = connect(
        KafkaConsumer,
        settings,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **options,
    )
    _create_no_topics(client._cluster)
    if topics:
        client.subscribe([topic.named(settings.topic_prefix) for topic in topics])
    try:
        yield client
    finally:
        client.close()
