"""The base class of all errors, the errors of the SDK and of infrastructure, and the definition of transient errors."""

from kafka.errors import KafkaError


class FoldtuneError(Exception):
    """The class docstring is the message; the arguments are appended as details."""

    def __str__(self) -> str:
        details = ", ".join(str(argument) for argument in self.args)
        return f"{type(self).__doc__} {details}".strip()


# ── Infrastructure ───────────────────────────────────────────────────────────────────────────────────────────────────


class InfrastructureError(FoldtuneError):
    """Infrastructure that foldtune depends on failed:"""


class ObjectStoreError(InfrastructureError):
    """The object store did not complete a request:"""


class ObjectStoreRefusedError(ObjectStoreError):
    """The object store refuses a request, until its settings or permissions change:"""


class ObjectMissingError(InfrastructureError):
    """Object not found:"""


class NoBrokerError(InfrastructureError):
    """No Kafka broker answers at FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS (or kafka.bootstrap_servers in foldtune.toml):"""


class BrokerRefusesError(NoBrokerError):
    """Brokers at FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS let this client not in (protocol, credentials or certificate):"""


class PublishError(InfrastructureError):
    """The brokers did not acknowledge an event (topic, reason, which):"""


class BufferFullError(InfrastructureError):
    """The client's buffer is full, and the event was not taken (bytes, why the brokers do not acknowledge):"""


class RecordRefusedError(PublishError):
    """A record cannot be written, however often it is tried (topic, reason):"""


class PartitionCountError(InfrastructureError):
    """The number of partitions of a topic differs from kafka.partitions (topic, actual, expected):"""


class TopicConfigError(InfrastructureError):
    """A topic's configuration differs; with kafka.topic_config "alter" it is altered (topic, key, actual, expected):"""


class SecretError(InfrastructureError):
    """A secret could not be read or lacks a field (secret, reason):"""


# The one definition of "retry": whatever met one of these is retried or redelivered, within bounds. Of infrastructure
# all errors count, also a missing object or secret: what an operator mends meanwhile succeeds then. boto3's exceptions
# never get here (the object store, the secrets and AWS Batch wrap them), and aiokafka's are its callers' to handle.
# Whoever would wait long before trying again may ask for ObjectStoreRefusedError, which waiting alone does not end.
TRANSIENT_ERRORS = (InfrastructureError, KafkaError, ConnectionError, TimeoutError)


class InvalidEventError(FoldtuneError):
    """event:"""


# ── The SDK ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class InvalidSettingsError(FoldtuneError, ValueError):
    """Invalid settings:"""


class OutOfBoundsError(FoldtuneError):
    """The event exceeds a bound and was not sent:"""


class ClientClosedError(FoldtuneError):
    """The client is closed."""


class TopicMissingError(FoldtuneError):
    """Topic not found, or hidden from this user ('foldtune topics create' creates it, 'topics acls' shows rights):"""


class StatusTimeoutError(FoldtuneError):
    """The request did not reach a final state in time (request_id, seconds, last state):"""


class ModelFileError(FoldtuneError):
    """A model does not match its model_ready event and was not deployed:"""


class ModelFolderError(FoldtuneError):
    """base_model:"""
