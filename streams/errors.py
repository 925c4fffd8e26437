"""What can go wrong in ``streams``. The class docstring is the message; the arguments say what exactly."""

from infra.errors import FoldtuneError


class StreamsError(FoldtuneError):
    """The stream side of foldtune did not do what was asked."""


class PartitionLostError(StreamsError):
    """Another worker owns the partition now:"""


class OutdatedViewError(StreamsError):
    """Another worker rewrote what was being read of a partition; to be read again:"""


class CannotListenError(StreamsError):
    """Metrics and health cannot be served at worker.http_host and worker.http_port (host, port, why):"""


class OutOfBoundsError(StreamsError):
    """An event is outside of its bounds, and was not sent:"""


class BodyError(StreamsError):
    """body:"""


class UnknownFieldsError(StreamsError):
    """No fields of a request:"""


class ClientClosedError(StreamsError):
    """The client is closed; nothing more can be sent with it."""


class TopicMissingError(StreamsError):
    """A topic is not on the brokers yet ('foldtune topics create' makes it):"""


class StatusTimeoutError(StreamsError):
    """The request did not come to its end in time (request, seconds, last state):"""


class ModelFileError(StreamsError):
    """A downloaded model is not the one that was announced, so nothing was put in place:"""
