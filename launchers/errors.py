"""What can go wrong in ``trainers.launchers``. The class docstring is the message; the arguments say what exactly."""

from foldtune.errors import FoldtuneError


class LauncherError(FoldtuneError):
    """The launcher did not do what was asked."""


class LaunchError(LauncherError):
    """A run could not be started (run, reason):"""


class RunBusyError(LauncherError):
    """An earlier run of the same job has not ended yet:"""
