"""A seeded schedule of faults, and the supervised worker processes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from infra.local.stack import LocalServers
from tests.chaos.traffic import Traffic

# A long pause exceeds the session timeout: the worker resumes as a zombie, whose partitions have been reassigned.
SESSION_SECONDS = 6
_LONG_PAUSE = (SESSION_SECONDS + 2, SESSION_SECONDS + 6)


class Worker:
    """A worker process with its own data folder; ``keep_alive`` restarts it after an exit."""

    def __init__(self, number: int, folder: Path, variables: dict[str, str]) -> None:
        self.data_dir = folder / f"worker-{number}"
        self.log = folder / f"worker-{number}.log"
        self.exits = 0
        self._variables = variables | {"FOLDTUNE_WORKER__DATA_DIR": str(self.data_dir)}
        # Static members keep their partitions over a quick restart; worker 0 is a dynamic member.
        if number:
            self._variables["FOLDTUNE_WORKER__INSTANCE_ID"] = f"worker-{number}"
        self.process = self._start()

    def keep_alive(self) -> None:
        """Restart the process if it has exited."""
        if self.process.poll() is not None:
            self.exits += 1
            self.process = self._start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; an exited process is ignored."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def stop(self) -> int:
        """Terminate the process as a deployment does, or kill it after 40 s; its exit status."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker"],
                env=os.environ | self._variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


class Faults(threading.Thread):
    """Injects faults until ``done`` is set, then repairs all of them and restarts the workers."""

    def __init__(
        self,
        servers: LocalServers,
        workers: list[Worker],
        traffic: Traffic,
        *,
        seed: int,
        every: float,
        kinds: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(name="faults", daemon=True)
        self.counts: Counter[str] = Counter()
        self.done = threading.Event()
        self._servers = servers
        self._workers = workers
        self._random = random.Random(seed)
        self._every = every
        self._due: list[tuple[float, Callable[[], None]]] = []
        weighted: dict[str, tuple[int, Callable[[], None]]] = {
            "kill -9": (30, self._kill),
            "long pause": (14, self._pause_long),
            "short pause": (10, self._pause_short),
            "stop": (6, self._terminate),
            "broker killed": (4, self._kill_broker),
            "S3 refused": (6, self._refuse_s3),
            "S3 slow": (8, self._slow_s3),
            "duplicates": (12, traffic.publish_duplicates),
            "poison": (10, traffic.publish_poison),
        }
        self._kinds = {name: fault for name, fault in weighted.items() if kinds is None or name in kinds}

    def run(self) -> None:
        next_fault = time.monotonic() + self._every
        while not self.done.is_set():
            self._run_due_repairs()
            for worker in self._workers:
                worker.keep_alive()
            if time.monotonic() > next_fault:
                next_fault = time.monotonic() + self._random.uniform(0.2, 1.8) * self._every
                names = list(self._kinds)
                kind = self._random.choices(names, [self._kinds[name][0] for name in names])[0]
                self._kinds[kind][1]()
                self.counts[kind] += 1
            time.sleep(0.05)
        self._run_due_repairs(repair_all=True)
        for worker in self._workers:
            worker.keep_alive()

    def _run_due_repairs(self, *, repair_all: bool = False) -> None:
        pending, self._due = self._due, []
        for due, repair in pending:
            if repair_all or time.monotonic() > due:
                repair()
            else:
                self._due.append((due, repair))

    def _schedule(self, seconds: float, repair: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + seconds, repair))

    def _kill(self) -> None:
        self._random.choice(self._workers).send(signal.SIGKILL)

    def _terminate(self) -> None:
        self._random.choice(self._workers).send(signal.SIGTERM)

    def _pause_long(self) -> None:
        self._pause(self._random.uniform(*_LONG_PAUSE))

    def _pause_short(self) -> None:
        self._pause(self._random.uniform(0.5, 3))

    def _pause(self, seconds: float) -> None:
        process = self._random.choice(self._workers).process
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGSTOP)
        # Resumes this process, even if the worker has been restarted meanwhile.
        self._schedule(seconds, lambda: _resume(process))

    def _kill_broker(self) -> None:
        self._servers.kafka.kill()
        self._servers.kafka.start()

    def _refuse_s3(self) -> None:
        self._servers.s3.kill()
        self._schedule(self._random.uniform(1, 4), self._servers.s3.start)

    def _slow_s3(self) -> None:
        pid = self._servers.s3.pid
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
            self._schedule(self._random.uniform(1, 6), lambda: _resume_pid(pid))


def _resume(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)


def _resume_pid(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
