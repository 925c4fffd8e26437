"""What can go wrong in ``launchers``. The class docstring is the message; the arguments say what exactly."""

from foldtune.errors import FoldtuneError, InfrastructureError


class LauncherError(FoldtuneError):
    """The launcher did not do what was asked."""


class LaunchError(LauncherError):
    """A run could not be started (run, reason):"""


class RunBusyError(LauncherError):
    """An earlier run of the same job has not ended yet:"""


class BatchError(InfrastructureError):
    """AWS Batch did not complete a request:"""
