"""The errors of ``streams``. The class docstring is the message; the arguments are appended as details."""

from foldtune.errors import FoldtuneError


class PartitionLostError(FoldtuneError):
    """This worker does not own the partition, or has not recovered it:"""


class OutdatedViewError(FoldtuneError):
    """Another worker rewrote the partition while it was read, a new view is needed:"""


class CannotListenError(FoldtuneError):
    """Cannot listen on worker.http_host and worker.http_port (host, port, reason):"""


class StoreInUseError(FoldtuneError):
    """Another worker uses this folder below worker.data_dir, each needs its own:"""


class ErasureKeyMissingError(FoldtuneError):
    """An erasure was stored with a key that worker.erasure_keys does not have any more (start of its digest):"""


class StoreOutdatedError(FoldtuneError):
    """The local database is to be removed, its changelog was written again or it is damaged (table, partition):"""


class UnreadableStateError(FoldtuneError):
    """The stored state cannot be decoded (partition, key, reason):"""
