"""The supervised worker processes, the kinds of faults, and their seeded schedule."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from foldtune.kafka import client_options
from foldtune.topics import Topic
from infra.local.stack import LocalServers
from tests.chaos.losses import Known, Losses
from tests.chaos.proxy import HoldingProxy
from tests.chaos.traffic import Traffic, Trainer
from tests.s3_proxy import HUNG, LOST, S3Proxy
from tests.support import settings_of

# Longer pauses exceed the session timeout: the worker resumes as a zombie, whose partitions have been reassigned.
SESSION_SECONDS = 6
_LONGER = (SESSION_SECONDS + 2, SESSION_SECONDS + 6)
# More than a year, the default of ``sets.max_age``.
_SKEW_SECONDS = 401 * 24 * 3600
_SLOW_EVERY = 12.0
_NOTICED_SECONDS = 120.0
_DISK_BYTES = 192 << 20
_COMPRESSIONS = ("zstd", "lz4", "snappy", "gzip", "producer")
_OF_STORE = re.compile(r"CURRENT|MANIFEST|.*\.sst")
Positions = dict[TopicPartition, Known]
# What can be undone: after how many seconds, and how.
Repair = tuple[float, Callable[[], None]] | None


class Worker:
    """A worker process with a clock, a disk and a way to the broker of its own."""

    def __init__(self, number: int, disk: Path, variables: dict[str, str], broker_port: int) -> None:
        self.disk, self.log, self.clock = disk, disk.with_suffix(".log"), disk.with_suffix(".clock")
        self.proxy = HoldingProxy(broker_port)
        self.exits = 0
        # Held while the process must not be restarted.
        self.lock = threading.Lock()
        self.variables = variables | {
            "FOLDTUNE_WORKER__DATA_DIR": str(self.disk / "state"),
            "TMPDIR": str(self.disk),
            "CHAOS_CLOCK": str(self.clock),
            "CHAOS_BROKER": f"{broker_port}:{self.proxy.port}",
        }
        # Static members keep their partitions over a quick restart; worker 0 is a dynamic member.
        if number:
            self.variables["FOLDTUNE_WORKER__INSTANCE_ID"] = f"worker-{number}"
        self.process = self._start()

    def keep_alive(self) -> None:
        """Restart the process if it has exited."""
        with self.lock:
            if self.process.poll() is not None:
                self.exits += 1
                self.process = self._start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; an exited process is ignored."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Terminate the process as a deployment does, or kill it after 40 s."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker"],
                env=os.environ | self.variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


@contextmanager
def small_disks(folders: list[Path]) -> Iterator[bool]:
    """A file system of its own for each folder, so that it can be full; false where that is not permitted."""
    command = ["/bin/mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    mounted = [folder for folder in folders if subprocess.run([*command, folder], check=False).returncode == 0]
    try:
        yield len(mounted) == len(folders)
    finally:
        for folder in mounted:
            subprocess.run(["/bin/umount", "--lazy", folder], check=True)


class Supervisor(threading.Thread):
    """Restarts workers that have exited, until ``done``."""

    def __init__(self, workers: list[Worker]) -> None:
        super().__init__(name="supervisor", daemon=True)
        self.done = threading.Event()
        self._workers = workers

    def run(self) -> None:
        while not self.done.wait(0.05):
            for worker in self._workers:
                worker.keep_alive()


class Faults:
    """The kinds of faults. Each method injects one, at random, and returns how to repair it."""

    def __init__(
        self,
        servers: LocalServers,
        s3: S3Proxy,
        workers: list[Worker],
        traffic: Traffic,
        losses: Losses,
    ) -> None:
        self.losses = losses
        self._servers = servers
        self._s3 = s3
        self._workers = workers
        self._traffic = traffic
        self._settings = losses.settings
        self.second_trainers: list[Trainer] = []
        self._skew = _SKEW_SECONDS
        # With the number of times in a round of the schedule.
        self.quick: dict[str, tuple[int, Callable[[random.Random], Repair]]] = {
            "kill -9": (5, partial(self._signal, signal.SIGKILL)),
            "stop": (1, partial(self._signal, signal.SIGTERM)),
            "short pause": (2, partial(self._pause, (0.5, 3))),
            "duplicates": (2, self._duplicates),
            "poison": (2, self._poison),
            "compression": (1, self._switch_compression),
        }
        self.slow: dict[str, tuple[int, Callable[[random.Random], Repair]]] = {
            "long pause": (1, partial(self._pause, _LONGER)),
            "held bytes": (1, self._hold_bytes),
            "wrong clock": (1, self._skew_clock),
            "disk full": (1, self._fill_disk),
            "broker killed": (1, self._kill_broker),
            "S3 refused": (1, self._refuse_s3),
            "S3 unavailable": (1, partial(self._fail_s3, "SlowDown")),
            "S3 keys expired": (1, partial(self._fail_s3, "ExpiredToken")),
            "S3 slow": (1, partial(self._fail_s3, HUNG)),
            "S3 answers lost": (1, partial(self._fail_s3, LOST)),
            "new app id": (1, self._change_app_id),
            "second trainer": (1, self._start_second_trainer),
            "records expired": (1, self._expire_records),
            "log truncated": (1, self._truncate_log),
            "store damaged": (1, self._damage_store),
        }

    def _signal(self, number: signal.Signals, chance: random.Random) -> Repair:
        chance.choice(self._workers).send(number)
        return None

    def _pause(self, seconds: tuple[float, float], chance: random.Random) -> Repair:
        process = chance.choice(self._workers).process
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGSTOP)
        # Resumes this process, even if the worker has been restarted meanwhile.
        return chance.uniform(*seconds), lambda: _resume(process)

    def _duplicates(self, _: random.Random) -> Repair:
        self._traffic.publish_duplicates()
        return None

    def _poison(self, _: random.Random) -> Repair:
        self._traffic.publish_poison()
        return None

    def _switch_compression(self, chance: random.Random) -> Repair:
        name = chance.choice(list(Topic)).named(self._settings.kafka.topic_prefix)
        self._traffic.connect().close()
        admin = KafkaAdminClient(**client_options(self._settings.kafka))
        try:
            change = {"compression.type": chance.choice(_COMPRESSIONS)}
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, change)])
        finally:
            admin.close()
        return None

    def _hold_bytes(self, chance: random.Random) -> Repair:
        """Cut a worker off until the others have taken over; what it had sent arrives then, dead or alive."""
        worker = chance.choice(self._workers)
        worker.proxy.hold(*chance.choice(((0,), (0, 1))))
        if chance.random() < 0.3:
            worker.send(signal.SIGKILL)
        return chance.uniform(*_LONGER), worker.proxy.release

    def _skew_clock(self, chance: random.Random) -> Repair:
        worker, self._skew = chance.choice(self._workers), -self._skew
        worker.clock.write_text(str(self._skew))
        return chance.uniform(*_LONGER), lambda: worker.clock.unlink(missing_ok=True)

    def _fill_disk(self, chance: random.Random) -> Repair:
        filler = chance.choice(self._workers).disk / "filler"
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * (1 << 16))
        return chance.uniform(2, 8), lambda: filler.unlink(missing_ok=True)

    def _kill_broker(self, _: random.Random) -> Repair:
        self._servers.kafka.kill()
        self._servers.kafka.start()
        return None

    def _refuse_s3(self, chance: random.Random) -> Repair:
        self._servers.s3.kill()
        return chance.uniform(1, 4), self._servers.s3.start

    def _fail_s3(self, fault: str, chance: random.Random) -> Repair:
        self._s3.fail(fault)
        return chance.uniform(3, 12), self._s3.heal

    def _change_app_id(self, _: random.Random) -> Repair:
        """As after the loss of the changelogs: the group starts anew, with what the input topics hold."""
        app, number, *_more = [*self._workers[0].variables["FOLDTUNE_WORKER__APP_ID"].split("-"), "0"]
        with ExitStack() as stack:
            for worker in self._workers:
                stack.enter_context(worker.lock)
                worker.kill()
                worker.variables["FOLDTUNE_WORKER__APP_ID"] = f"{app}-{int(number) + 1}"
            self.losses.forget()
        return None

    def _expire_records(self, chance: random.Random) -> Repair:
        """Delete records of a data topic as its retention does, some of which nobody has read."""
        with self._nothing_running(chance.uniform(0, 2)) as (positions, start_workers):
            partition = chance.choice(list(positions))
            noticeable = self.losses.expire(partition, chance, positions[partition])
            start_workers()
            self._await_change(partition, positions, noticeable=noticeable)
        return None

    def _truncate_log(self, chance: random.Random) -> Repair:
        """Have a broker lose the end of a data topic's log, as in an unclean election."""
        with self._nothing_running(chance.choice((0, 0, 1))) as (positions, start_workers):
            partition = chance.choice([partition for partition in positions if self.losses.can_truncate(partition)])
            noticeable = self.losses.truncate(partition, chance, positions[partition], self._servers.kafka)
            start_workers()
            self._await_change(partition, positions, noticeable=noticeable)
        return None

    def _damage_store(self, chance: random.Random) -> Repair:
        """Cut or alter a file of a worker's RocksDB that does not run."""
        worker = chance.choice(self._workers)
        with worker.lock:
            worker.kill()
            files = sorted(path for path in worker.disk.rglob("*.db/*") if _OF_STORE.match(path.name))
            if files and (content := bytearray((file := chance.choice(files)).read_bytes())):
                place = chance.randrange(len(content))
                content[place] ^= 0xFF
                file.write_bytes(content if chance.random() < 0.5 else content[:place])
        return None

    @contextmanager
    def _nothing_running(self, seconds: float) -> Iterator[tuple[Positions, Callable[[], None]]]:
        """Kill all workers, and publish nothing after some more seconds.

        Yields where they would continue, and what has them run again before the end.
        """
        with ExitStack() as stack:
            for worker in self._workers:
                stack.enter_context(worker.lock)
                worker.kill()
            for worker in self._workers:
                worker.proxy.release()
            # What was held back has arrived by then.
            time.sleep(1 + seconds)
            with self._traffic.lock:
                yield self._positions(), stack.close

    def _await_change(self, partition: TopicPartition, positions: Positions, *, noticeable: bool) -> None:
        """Wait until the workers have noticed what happened to a partition.

        An end that has grown beyond their offset before they look tells them nothing.
        """
        deadline = time.monotonic() + _NOTICED_SECONDS
        while (
            noticeable
            and self._positions()[partition].position == positions[partition].position
            and time.monotonic() < deadline
        ):
            time.sleep(0.5)

    def _positions(self) -> Positions:
        return self.losses.positions(settings_of(self._workers[0].variables))

    def _start_second_trainer(self, chance: random.Random) -> Repair:
        trainer = Trainer(self._settings, second=True)
        self.second_trainers.append(trainer)
        trainer.start()
        return chance.uniform(*_LONGER), trainer.done.set


class Injector(threading.Thread):
    """Injects kinds of faults until ``done``, then repairs all of them.

    In rounds, each of all kinds in a random order: so each kind is injected as often as the others, and at least twice.
    """

    def __init__(
        self,
        kinds: dict[str, tuple[int, Callable[[random.Random], Repair]]],
        *,
        seed: str,
        every: float,
        seconds: float,
    ) -> None:
        super().__init__(name=f"faults {seed}", daemon=True)
        self.counts: Counter[str] = Counter()
        self.done = threading.Event()
        self.error: Exception | None = None
        self._kinds = kinds
        self._random = random.Random(seed)
        self._every = min(every, seconds / (2 * sum(copies for copies, _ in kinds.values()) + 1))
        self._due: list[tuple[float, Callable[[], None]]] = []

    def run(self) -> None:
        try:
            self._inject()
        except Exception as error:
            self.error = error
        for _, repair in self._due:
            repair()

    def _inject(self) -> None:
        coming: list[str] = []
        next_fault = time.monotonic() + self._every
        while not self.done.is_set() or (self._kinds and min(self.counts[name] for name in self._kinds) < 2):
            self._repair_due()
            if time.monotonic() > next_fault:
                next_fault += self._random.uniform(0.2, 1.8) * self._every
                if not coming:
                    coming = [name for name, (copies, _) in self._kinds.items() for _ in range(copies)]
                    self._random.shuffle(coming)
                name = coming.pop()
                if repair := self._kinds[name][1](self._random):
                    self._due.append((time.monotonic() + repair[0], repair[1]))
                self.counts[name] += 1
                sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {name}\n")
            time.sleep(0.05)

    def _repair_due(self) -> None:
        pending, self._due = self._due, []
        for due, repair in pending:
            if time.monotonic() > due:
                repair()
            else:
                self._due.append((due, repair))


def injectors(
    faults: Faults, *, seed: int, every: float, seconds: float, kinds: tuple[str, ...] | None, skipped: Collection[str]
) -> list[Injector]:
    """One for quick faults and one for slow ones, which overlap; of all kinds or some."""
    found = []
    for speed, known, pace in (("quick", faults.quick, every), ("slow", faults.slow, _SLOW_EVERY)):
        wanted = kinds or known.keys()
        chosen = {name: fault for name, fault in known.items() if name in wanted and name not in skipped}
        if chosen:
            found.append(Injector(chosen, seed=f"{seed} {speed}", every=pace, seconds=seconds))
    return found


def _resume(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
