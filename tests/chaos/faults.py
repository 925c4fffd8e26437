"""A seeded schedule of everything that goes wrong, and the workers that it happens to."""

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

# A paused worker must be missed: it wakes up as one that lost its partitions and does not know it.
SESSION_SECONDS = 6
_LONG_PAUSE = (SESSION_SECONDS + 2, SESSION_SECONDS + 6)


class Worker:
    """One worker process on its own disk; whoever supervises it starts it again when it ends."""

    def __init__(self, number: int, folder: Path, variables: dict[str, str]) -> None:
        self.data_dir = folder / f"worker-{number}"
        self.log = folder / f"worker-{number}.log"
        self.exits = 0
        self._variables = variables | {
            "FOLDTUNE_WORKER__DATA_DIR": str(self.data_dir),
            # Some keep their partitions over a quick restart; those without a name leave them to the others.
            "FOLDTUNE_WORKER__INSTANCE_ID": f"worker-{number}" if number else "",
        }
        self.process = self._started()

    def keep_alive(self) -> None:
        """Start it again if it has ended."""
        if self.process.poll() is not None:
            self.exits += 1
            self.process = self._started()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def stop(self) -> int:
        """End it as an operator would; its exit code."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker"],
                env=os.environ | self._variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


class Faults(threading.Thread):
    """Injects one fault after the other until it is told to stop, and then heals everything."""

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
        weighed: dict[str, tuple[int, Callable[[], None]]] = {
            "kill -9": (30, self._kill),
            "long pause": (14, self._pause_long),
            "short pause": (10, self._pause_short),
            "stop": (6, self._terminate),
            "broker killed": (4, self._kill_broker),
            "S3 refused": (6, self._refuse_s3),
            "S3 slow": (8, self._slow_s3),
            "duplicates": (12, traffic.repeat),
            "poison": (10, traffic.poisoned),
        }
        self._kinds = {name: one for name, one in weighed.items() if kinds is None or name in kinds}

    def run(self) -> None:
        next_fault = time.monotonic() + self._every
        while not self.done.is_set():
            self._heal_what_is_due()
            for worker in self._workers:
                worker.keep_alive()
            if time.monotonic() > next_fault:
                next_fault = time.monotonic() + self._random.uniform(0.2, 1.8) * self._every
                names = list(self._kinds)
                kind = self._random.choices(names, [self._kinds[name][0] for name in names])[0]
                self._kinds[kind][1]()
                self.counts[kind] += 1
            time.sleep(0.05)
        self._heal_what_is_due(everything=True)
        for worker in self._workers:
            worker.keep_alive()

    def _heal_what_is_due(self, *, everything: bool = False) -> None:
        waiting, self._due = self._due, []
        for moment, heal in waiting:
            if everything or time.monotonic() > moment:
                heal()
            else:
                self._due.append((moment, heal))

    def _later(self, seconds: float, heal: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + seconds, heal))

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
        # The same process, even if the worker has another by then.
        self._later(seconds, lambda: _wake(process))

    def _kill_broker(self) -> None:
        self._servers.kafka.kill()
        self._servers.kafka.start()

    def _refuse_s3(self) -> None:
        self._servers.s3.kill()
        self._later(self._random.uniform(1, 4), self._servers.s3.start)

    def _slow_s3(self) -> None:
        pid = self._servers.s3.pid
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
            self._later(self._random.uniform(1, 6), lambda: _continue(pid))


def _wake(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)


def _continue(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
