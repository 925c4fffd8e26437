"""What can go wrong in ``streams``. The class docstring is the message; the arguments say what exactly."""


class StreamsError(Exception):
    """The stream side of foldtune did not do what was asked."""

    def __str__(self) -> str:
        details = ", ".join(str(argument) for argument in self.args)
        return f"{type(self).__doc__} {details}".strip()


class PartitionLostError(StreamsError):
    """Another worker owns the partition now:"""
