"""Runs a job as a subprocess of this machine."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

import structlog

from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from launchers.local.log_file import LogFile
from launchers.port import Ending, Launcher, LaunchError, Run, RunBusyError, RunOutcome, RunStatus, job_segment
from launchers.run_outcomes import outcome_of
from trainers.environment import job_environment

log = structlog.get_logger(__name__)

TRAINER = (sys.executable, "-m", "trainers.job")

# On SIGTERM a trainer writes a checkpoint, and ends itself within 25 s; a cluster gives it and its launcher 30 s.
GRACE_SECONDS = 26.0

_INTERRUPTED = RunOutcome(ending=Ending.INTERRUPTED, retryable=True)


@dataclass
class _Process:
    """A run whose end was not polled yet."""

    popen: subprocess.Popen[bytes]
    log_file: LogFile
    lock: BufferedWriter
    deadline: float
    # The outcome of one that was asked to end, and when it is killed if it has not.
    stopping: RunOutcome | None = None
    kill_at: float = float("inf")


class LocalLauncher(Launcher):
    """Starts ``COMMAND JOB_URI`` in a process group of its own, which dies with this process, however that ends.

    It is created and used in one process and one thread: on Linux a child lives no longer than the thread that
    started it.
    """

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        *,
        command: Sequence[str] = TRAINER,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._settings = settings
        self._store = store
        self._command = tuple(command)
        self._grace = grace_seconds
        self._folder = settings.trainer.work_dir / "launcher"
        self._active: dict[str, _Process] = {}
        self._ended: dict[str, RunOutcome] = {}

    def submit(self, run: Run) -> None:
        with ExitStack() as undo:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                lock = undo.enter_context(self._lock(run))
                log_file = LogFile(self._folder, self._store, run)
                undo.callback(log_file.close)
                popen = self._spawn(run, log_file, lock)
            except OSError as error:
                raise LaunchError(run.name, error) from error
            undo.pop_all()
        self._active[run.name] = _Process(popen, log_file, lock, time.monotonic() + run.job.max_seconds)
        log.info("training started", request_id=run.job.request.request_id, run=run.name, pid=popen.pid)

    def poll(self, run: Run) -> RunStatus | None:
        if run.name in self._ended:
            return RunStatus(outcome=self._ended[run.name])
        process = self._active.get(run.name)
        if process is None:
            return None
        code = process.popen.poll()
        if code is None:
            self._enforce_deadlines(process, run)
            return RunStatus(running=True)
        _signal_group(process.popen, signal.SIGKILL)  # the rest of the group
        outcome = outcome_of(code, process.stopping)
        if outcome.retryable and process.stopping is None and (cause := process.log_file.last_error()):
            outcome = outcome.model_copy(update={"reasons": (*outcome.reasons, cause)})
        outcome = outcome.model_copy(update={"log_uri": process.log_file.close()})
        process.lock.close()
        self._ended[run.name] = outcome
        del self._active[run.name]
        return RunStatus(outcome=outcome)

    def find(self, run: Run) -> bool:
        return run.name in self._active or run.name in self._ended

    def cancel(self, run: Run) -> None:
        self._stop(run, RunOutcome(ending=Ending.CANCELLED))

    def interrupt(self, run: Run) -> None:
        self._stop(run, _INTERRUPTED)

    def interrupt_all(self) -> None:
        """Interrupt all runs at once, from any thread; ``poll`` has the outcome of each."""
        for process in list(self._active.values()):
            self._end(process, _INTERRUPTED)

    def _lock(self, run: Run) -> BufferedWriter:
        """The job's lock, which the process inherits: the kernel holds it until the last process with it is gone."""
        path: Path = self._folder / f"{job_segment(run.job)}.lock"
        lock = path.open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunBusyError(run.name) from None
        return lock

    def _spawn(self, run: Run, log_file: LogFile, lock: BufferedWriter) -> subprocess.Popen[bytes]:
        wrapper = (sys.executable, "-m", "launchers.local.die_with_parent", str(os.getpid()))
        return subprocess.Popen(
            [*wrapper, *self._command, run.job_uri],
            stdin=subprocess.DEVNULL,
            stdout=log_file.file,
            stderr=subprocess.STDOUT,
            env=job_environment(self._settings),
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )

    def _enforce_deadlines(self, process: _Process, run: Run) -> None:
        if process.stopping is None and time.monotonic() > process.deadline:
            reason = f"exceeded max_seconds: {run.job.max_seconds}"
            self._stop(run, RunOutcome(ending=Ending.FAILED, reasons=(reason,)))
        elif time.monotonic() > process.kill_at:
            _signal_group(process.popen, signal.SIGKILL)

    def _stop(self, run: Run, outcome: RunOutcome) -> None:
        if process := self._active.get(run.name):
            self._end(process, outcome)

    def _end(self, process: _Process, outcome: RunOutcome) -> None:
        if process.stopping is None:
            process.stopping = outcome
            process.kill_at = time.monotonic() + self._grace
            _signal_group(process.popen, signal.SIGTERM)


def _signal_group(popen: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(popen.pid, number)
    except ProcessLookupError:
        return
