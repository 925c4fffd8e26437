"""What can go wrong in ``trainers.launchers``. The class docstring is the message; the arguments say what exactly."""


class LauncherError(Exception):
    """The launcher did not do what was asked."""

    def __str__(self) -> str:
        details = ", ".join(str(argument) for argument in self.args)
        return f"{type(self).__doc__} {details}".strip()


class LaunchError(LauncherError):
    """A run could not be started (run, reason):"""


class RunBusyError(LauncherError):
    """An earlier run of the same job has not ended yet:"""
