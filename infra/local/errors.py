"""What can go wrong with the local servers. The class docstring is the message; the arguments say what exactly."""

from foldtune.errors import FoldtuneError


class LocalServersError(FoldtuneError):
    """The local servers did not do what was asked:"""


class LocalExtraMissingError(LocalServersError):
    """The local servers need more packages; install them with: pip install 'foldtune-server[local]'. Missing:"""


class JarUnavailableError(LocalServersError):
    """A jar could not be downloaded; connect to the network once, or copy it to its place in the Maven cache:"""


class JarChangedError(LocalServersError):
    """A downloaded jar is not the one in the lock file, so nothing was started (jar, SHA-256 found, SHA-256 locked):"""


class ServerStartError(LocalServersError):
    """A local server did not start (server, why, the end of its logs):"""


class DataFolderInUseError(LocalServersError):
    """Local servers are running on this data folder already; 'foldtune local status' says how to reach them:"""


class ForeignDataFolderError(LocalServersError):
    """This folder holds something else than the data of local servers; name an empty or a new one:"""


class NoFreePortError(LocalServersError):
    """No free port was found on this machine in the range:"""
