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


class ObjectMissingError(InfrastructureError):
    """Object not found:"""


class NoBrokerError(InfrastructureError):
    """No Kafka broker answers at FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS (or kafka.bootstrap_servers in foldtune.toml):"""


class PublishError(InfrastructureError):
    """The brokers did not acknowledge an event (topic, reason):"""


class PartitionCountError(InfrastructureError):
    """The number of partitions of a topic differs from kafka.partitions (topic, actual, expected):"""


class SecretError(InfrastructureError):
    """A secret could not be read or lacks a field (secret, reason):"""


# The one definition of "retry": infrastructure fails and recovers, so work that raised one of these is retried or
# redelivered. boto3's own exceptions are not among them, since the object store and the launchers wrap them.
TRANSIENT_ERRORS = (InfrastructureError, KafkaError, ConnectionError, TimeoutError)


# ── The SDK ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class InvalidSettingsError(FoldtuneError, ValueError):
    """Invalid settings:"""


class OutOfBoundsError(FoldtuneError):
    """The event exceeds a bound and was not sent:"""


class ClientClosedError(FoldtuneError):
    """The client is closed."""


class TopicMissingError(FoldtuneError):
    """Topic not found on the brokers ('foldtune topics create' creates it):"""


class StatusTimeoutError(FoldtuneError):
    """The request did not reach a final state in time (request_id, seconds, last state):"""


class ModelFileError(FoldtuneError):
    """A model does not match its model_ready event and was not deployed:"""
