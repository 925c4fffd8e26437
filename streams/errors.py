"""What can go wrong in ``streams``. The class docstring is the message; the arguments say what exactly."""

from foldtune.errors import FoldtuneError


class PartitionLostError(FoldtuneError):
    """Another worker owns the partition now:"""


class OutdatedViewError(FoldtuneError):
    """The partition was rewritten by another worker while it was read; read it again:"""


class CannotListenError(FoldtuneError):
    """Cannot listen on worker.http_host and worker.http_port (host, port, reason):"""
