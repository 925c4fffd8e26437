"""A launcher that runs nothing and whose runs end as the test says."""

from launchers.port import Ending, Launcher, LaunchError, Run, RunOutcome

SUCCESS = RunOutcome(ending=Ending.SUCCEEDED)


class FakeLauncher(Launcher):
    """Ends its runs, in the order of their start, with ``endings``, and after those with success.

    ``None`` among the endings is a run that goes on until it is cancelled, interrupted or told to ``end``.
    """

    def __init__(self, *endings: RunOutcome | None) -> None:
        self._endings = list(endings)
        self._outcomes: dict[str, RunOutcome | None] = {}
        self.submitted: list[Run] = []

    def submit(self, run: Run) -> None:
        if run.name in self._outcomes:
            raise LaunchError(run.name, "is known already")
        self.submitted.append(run)
        self._outcomes[run.name] = self._endings.pop(0) if self._endings else SUCCESS

    def poll(self, run: Run) -> RunOutcome | None:
        return self._outcomes[run.name]

    def cancel(self, run: Run) -> None:
        self.end(run, RunOutcome(ending=Ending.CANCELLED))

    def interrupt(self, run: Run) -> None:
        self.end(run, RunOutcome(ending=Ending.INTERRUPTED, retryable=True))

    def end(self, run: Run, outcome: RunOutcome) -> None:
        """End a run that goes on."""
        if self._outcomes[run.name] is None:
            self._outcomes[run.name] = outcome
