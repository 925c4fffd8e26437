"""A launcher that runs nothing and whose runs end as the test says."""

from launchers.port import Ending, Launcher, LaunchError, Run, RunOutcome, RunStatus

SUCCESS = RunOutcome(ending=Ending.SUCCEEDED)


class FakeLauncher(Launcher):
    """Ends its runs, in the order of their start, with ``endings``, and after those with success.

    ``None`` among the endings is a run that goes on until it is cancelled, interrupted or ended with ``end``.
    It is attached or ``detached``, and makes the attempts itself or not (``retries``).
    """

    def __init__(self, *endings: RunOutcome | None, detached: bool = False, retries: bool = False) -> None:
        self.detached = detached
        self.retries = retries
        self._endings = list(endings)
        self._outcomes: dict[str, RunOutcome | None] = {}
        self._recorded: set[str] = set()
        self.submitted: list[Run] = []

    def submit(self, run: Run) -> None:
        if run.name in self._outcomes:
            raise LaunchError(run.name, "is known already")
        self.submitted.append(run)
        self._outcomes[run.name] = self._endings.pop(0) if self._endings else SUCCESS
        self._recorded.add(run.name)

    def poll(self, run: Run) -> RunStatus | None:
        if run.name not in self._recorded:
            return None
        outcome = self._outcomes[run.name]
        return RunStatus(running=outcome is None, outcome=outcome)

    def find(self, run: Run) -> bool:
        if run.name in self._outcomes:
            self._recorded.add(run.name)
        return run.name in self._outcomes

    def cancel(self, run: Run) -> None:
        self.end(run, RunOutcome(ending=Ending.CANCELLED))

    def interrupt(self, run: Run) -> None:
        self.end(run, RunOutcome(ending=Ending.INTERRUPTED, retryable=True))

    def end(self, run: Run, outcome: RunOutcome) -> None:
        """End a run that goes on."""
        if self._outcomes[run.name] is None:
            self._outcomes[run.name] = outcome

    def forget(self) -> None:
        """Lose what is on record of the submissions, as a crash between the two does; the runs go on."""
        self._recorded.clear()
