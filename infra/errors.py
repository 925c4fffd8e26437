"""What can go wrong in ``infra``. The class docstring is the message; the arguments say what exactly."""


class InfraError(Exception):
    """The surroundings did not do what was asked."""

    def __str__(self) -> str:
        details = ", ".join(str(argument) for argument in self.args)
        return f"{type(self).__doc__} {details}".strip()


class ObjectMissingError(InfraError):
    """There is no such object:"""


class PublishError(InfraError):
    """An event was not acknowledged by the brokers:"""


class PartitionCountError(InfraError):
    """A topic has another number of partitions than kafka.partitions says (topic, found, wanted):"""
