"""The base of all errors of foldtune, those of the SDK and of infrastructure, and which of them are transient."""

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
    """An event was not acknowledged by the brokers:"""


class PartitionCountError(InfrastructureError):
    """A topic's number of partitions differs from kafka.partitions (topic, found, expected):"""


class SecretError(InfrastructureError):
    """A secret could not be read, or lacks what a Kafka client needs:"""


# The one definition of "try again": infrastructure fails and recovers, so whatever met one of these is retried or
# redelivered. boto3's own exceptions never get this far, the object store and the launchers wrap them.
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
    """The request reached no final state in time (request_id, seconds, last state):"""


class ModelFileError(FoldtuneError):
    """A downloaded model does not match its announcement, nothing was deployed:"""
