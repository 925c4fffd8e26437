"""One run: real servers, a worker, a launcher and the HTTP API; random events in batches, each followed by probes."""

import asyncio
import re
import socket
import statistics
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidTimestampError, MessageSizeTooLargeError
from pydantic import ValidationError

from foldtune.dead_letters import OFFSET_HEADER, PARTITION_HEADER, TOPIC_HEADER
from foldtune.events import FineTuneStatus, SnapshotPart
from foldtune.settings import Settings
from foldtune.topic_admin import create_topics
from foldtune.topics import DATA_TOPICS, Topic
from infra.local.options import LocalOptions
from infra.local.ports import free_port
from infra.local.stack import LocalServers
from tests.fuzz.events import CODECS, CONTRACTS, PARTITIONS, Case, Generator, http_call
from tests.support import ChildProcess, Reader, environment, settings_of

BATCH = 100
# A batch and the ends of all requests, on a busy machine.
PATIENCE = 180.0
# Of a good event: what is counted, and what fails the run: so many seconds, and so many times as long as without bad
# events before it, since that is how busy the machine is.
SLOW_SECONDS, STUCK_SECONDS, STUCK_TIMES = 1.0, 5.0, 100
# The worker's memory, last third against first third. RocksDB's buffers, up to 256 MiB, fill for longer than a run.
MAX_GROWTH, WARM_UP_BATCHES = 1.2, 10
_PAGE = 4096
_OF_CLIENTS = re.compile(r'"logger": "(aio)?kafka\b')

Origin = tuple[str, int, int]


@dataclass
class Report:
    """Counts of the run; ``wrong`` must be empty."""

    seed: int
    records: dict[str, int] = field(default_factory=dict)
    # What the brokers did not take.
    refused: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    stored: int = 0
    # What became of requests, snapshot commands and valid jobs.
    answers: dict[str, int] = field(default_factory=dict)
    http: dict[str, int] = field(default_factory=dict)
    # By topic: how long good events took right after a batch, and once more without one.
    good_events: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    # Samples, one a batch; and the medians of their first and last third, after a warm-up.
    worker_mib: list[int] = field(default_factory=list)
    worker_mib_thirds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class _StoppedError(Exception):
    """Nothing more can be found out; the report says why."""


class Fuzz:
    """A system under random events."""

    def __init__(
        self, seed: int, settings: Settings, processes: dict[str, ChildProcess], ports: dict[str, int]
    ) -> None:
        self.report = Report(seed)
        self._random = Random(seed)
        self._generator = Generator(seed)
        self._settings = settings
        self._prefix = settings.kafka.topic_prefix
        self._processes = processes
        self._ports = ports
        self._producers: dict[str | None, AIOKafkaProducer] = {}
        self._cases: dict[Origin, Case] = {}
        self._letters: Counter[Origin] = Counter()
        # When the worker made the last one, and when the brokers took its record; in ms.
        self._lettered_at: dict[Origin, int] = {}
        self._sent_at: dict[Origin, int] = {}
        self._read = 0
        self._answers: dict[tuple[str, ...], set[str]] = {}
        # Seconds of a good event after a batch, and without.
        self._pairs: dict[str, list[tuple[float, float]]] = {}

    def run(self, count: int, seconds: float, reader: Reader) -> Report:
        """Send ``count`` events, for at most ``seconds``, and compare what became of them with what was to."""
        with suppress(_StoppedError):
            asyncio.run(self._run(count, time.monotonic() + seconds, reader))
        self._compare()
        return self.report

    async def _run(self, count: int, deadline: float, reader: Reader) -> None:
        servers = self._settings.kafka.bootstrap_servers
        for codec in CODECS:
            producer = AIOKafkaProducer(bootstrap_servers=servers, compression_type=codec, max_request_size=4 << 20)
            await producer.start()
            self._producers[codec] = producer
        try:
            for start in range(0, count, BATCH):
                if time.monotonic() > deadline:
                    break
                for _ in range(min(BATCH, count - start)):
                    await self._send(self._generator.case(self._random.choice(tuple(CONTRACTS))))
                for _ in range(BATCH // 20):
                    self._call_api()
                after = await self._good_events(reader)
                self._until(reader, self._all_letters, "dead letters")
                control = await self._good_events(reader)
                for topic, seconds in after.items():
                    self._pairs.setdefault(topic, []).append((seconds, control[topic]))
                resident = int(Path(f"/proc/{self._processes['worker'].pid}/statm").read_text().split()[1])
                self.report.worker_mib.append(resident * _PAGE >> 20)
            for _ in range(count // 1000):
                await self._send(self._generator.job_without_snapshot())
            self._until(reader, self._all_answered, "answers")
        finally:
            for producer in self._producers.values():
                await producer.stop()

    async def _send(self, case: Case) -> Origin | None:
        topic = case.topic.named(self._prefix)
        try:
            metadata = await self._producers[case.codec].send_and_wait(
                topic,
                case.value,
                # The client refuses a record with neither.
                key=b"k" if case.value is case.key is None else case.key,
                partition=case.partition,
                timestamp_ms=case.timestamp,
                headers=case.headers,
            )
        except (MessageSizeTooLargeError, InvalidTimestampError):
            self.report.refused += 1
            return None
        origin = (topic, case.partition, metadata.offset)
        self._cases[origin] = case
        self._sent_at[origin] = metadata.timestamp
        self.report.records[case.topic.label] = self.report.records.get(case.topic.label, 0) + 1
        return origin

    async def _good_events(self, reader: Reader) -> dict[str, float]:
        """By topic, how long a good event takes on the slowest partition: until the bad one behind it is rejected."""
        sent: dict[str, list[Origin]] = {}
        for partition in range(PARTITIONS):
            for good in self._generator.good_cases(partition):
                await self._send(good)
                marker = await self._send(Case(good.topic, partition, b"{marker", letters=1))
                assert marker
                sent.setdefault(good.topic.label, []).append(marker)
        markers = [marker for group in sent.values() for marker in group]
        self._until(reader, lambda: all(self._letters[marker] for marker in markers), "good events")
        return {
            topic: max(self._lettered_at[marker] - self._sent_at[marker] for marker in group) / 1000
            for topic, group in sent.items()
        }

    def _call_api(self) -> None:
        content, valid = http_call(self._random)
        with socket.create_connection(("127.0.0.1", self._ports["api"]), timeout=30) as connection:
            try:
                connection.sendall(content)
                answer = connection.makefile("rb").readline()
            except (BrokenPipeError, ConnectionResetError):
                # The answer was given before all of the body was sent.
                answer = b"HTTP/1.1 closed"
        code = answer.split(b" ")[1].decode() if answer.count(b" ") else "none"
        self.report.http[code] = self.report.http.get(code, 0) + 1
        if (valid and code != "202") or (not valid and code[0] not in "4c"):
            self.report.wrong.append(f"http: {content[:80]!r} was answered {code}")

    # ── What became of them ──────────────────────────────────────────────────────────────────────────────────────────

    def _until(self, reader: Reader, condition: Any, what: str) -> None:
        def holds(records: list[Any]) -> bool:
            self._check_processes()
            for record in records[self._read :]:
                self._read += 1
                self._add(record)
            return bool(condition())

        try:
            reader.until(holds, PATIENCE)
        except AssertionError:
            self.report.wrong.append(f"{what}: not within {PATIENCE:g} s")
            raise _StoppedError from None

    def _add(self, record: Any) -> None:
        label = record.topic.removeprefix(self._prefix)
        if label == Topic.DEAD_LETTERS.label:
            headers = {name: value.decode() for name, value in record.headers}
            origin = headers[TOPIC_HEADER], int(headers[PARTITION_HEADER]), int(headers[OFFSET_HEADER])
            self._letters[origin] += 1
            self._lettered_at[origin] = record.timestamp
            return
        # What is read back of the reports and parts was sent here, in part, and is not always valid.
        with suppress(ValidationError):
            if label == Topic.SNAPSHOT_PARTS.label:
                part = SnapshotPart.model_validate_json(record.value or b"")
                ids = (label, part.request_id, str(part.partition))
                self._answers.setdefault(ids, set()).add("failed" if part.error else "exported")
            else:
                status = FineTuneStatus.model_validate_json(record.value or b"")
                if status.state.terminal:
                    ids = (label, status.model, status.request_id)
                    self._answers.setdefault(ids, set()).add(status.state.value)

    def _all_letters(self) -> bool:
        return all(self._letters[origin] >= (case.letters or 0) for origin, case in self._cases.items())

    def _all_answered(self) -> bool:
        return all(case.answer in self._answers for case in self._cases.values() if case.answer)

    def _check_processes(self) -> None:
        for name, process in self._processes.items():
            if not process.alive:
                self.report.wrong.append(f"{name} has ended: {process.log.read_text()[-2000:]}")
                raise _StoppedError

    def _compare(self) -> None:
        report = self.report
        wanted = 0
        for origin, case in self._cases.items():
            letters = self._letters[origin]
            wanted += 1 - letters if case.letters is None else case.stored
            if letters != case.letters and (case.letters is not None or letters > 1):
                text = f"{letters} dead letters instead of {case.letters}"
                report.wrong.append(f"{origin}: {text}: {(case.value or b'')[:200]!r}")
            if case.answer and len(self._answers.get(case.answer, ())) != 1:
                report.wrong.append(f"{case.answer}: answered by {self._answers.get(case.answer)}")
        if unknown := set(self._letters) - set(self._cases):
            report.wrong.append(f"dead letters of {len(unknown)} records that were not sent: {sorted(unknown)[:5]}")
        report.dead_letters = dict(Counter(origin[0].removeprefix(self._prefix) for origin in self._letters.elements()))
        answered = {case.answer for case in self._cases.values() if case.answer} & set(self._answers)
        report.answers = dict(Counter(f"{ids[0]} {state}" for ids in answered for state in self._answers[ids]))
        report.stored = self._await_stored(wanted)
        if wanted != report.stored:
            report.wrong.append(f"{wanted} events were to be stored, and {report.stored} were")
        for name, process in self._processes.items():
            lines = process.log.read_text().splitlines()
            # The Kafka clients' errors are those of a slow machine.
            errors = [line for line in lines if '"level": "error"' in line and not _OF_CLIENTS.search(line)]
            report.wrong += [f"{name}: {line[:1000]}" for line in errors[:5]]
        self._compare_times()
        self._compare_memory()
        # The first ones say enough.
        del report.wrong[20:]

    def _compare_times(self) -> None:
        for topic, pairs in self._pairs.items():
            columns = dict(zip(("after", "control"), zip(*pairs, strict=True), strict=True))
            self.report.good_events[topic] = {
                "median": [statistics.median(column) for column in columns.values()],
                "p99": [sorted(column)[len(column) * 99 // 100] for column in columns.values()],
                "slow": [sum(seconds > SLOW_SECONDS for seconds in column) for column in columns.values()],
                "ratio": [round(statistics.median(after / max(control, 0.001) for after, control in pairs), 2)],
            }
            if stuck := [pair for pair in pairs if pair[0] > max(STUCK_SECONDS, STUCK_TIMES * pair[1])]:
                self.report.wrong.append(f"{topic}: good events took {stuck} s, after bad ones and without")

    def _compare_memory(self) -> None:
        samples = self.report.worker_mib[WARM_UP_BATCHES:]
        if third := len(samples) // 3:
            first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
            self.report.worker_mib_thirds = [first, last]
            if last > first * MAX_GROWTH:
                self.report.wrong.append(f"the worker's memory has grown from {first} to {last} MiB")

    def _await_stored(self, wanted: int) -> int:
        """What the worker has stored; no dead letter says that it is done with its last events."""
        deadline = time.monotonic() + 30
        stored = -1
        while self._processes["worker"].alive and stored != wanted and time.monotonic() < deadline:
            stored = self._stored()
        return stored

    def _stored(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['worker']}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        labels = {f'foldtune_records_total{{topic="{topic.label}"}}' for topic in DATA_TOPICS}
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.rpartition(" ")[0] in labels)


def run(seed: int, count: int, seconds: float, folder: Path) -> Report:
    """``fuzz`` on servers of its own."""
    options = LocalOptions(data_dir=folder / "servers", kafka_port=None, s3_port=None, keep_data=False)
    with LocalServers(options) as servers:
        return fuzz(servers, seed, count, seconds, folder)


def fuzz(servers: LocalServers, seed: int, count: int, seconds: float, folder: Path) -> Report:
    """Start a worker, a launcher and the HTTP API, and send them ``count`` events, for at most ``seconds``."""
    ports = {"worker": free_port(), "api": free_port()}
    variables = environment(servers, folder, FOLDTUNE_WORKER__HTTP_PORT=str(ports["worker"]))
    settings = settings_of(variables)
    create_topics(settings.kafka, tuple(Topic))
    commands = {"worker": ["worker"], "launcher": ["launcher"], "api": ["api", "--port", str(ports["api"])]}
    processes = {name: ChildProcess(command, variables, folder / f"{name}.log") for name, command in commands.items()}
    try:
        for name, port in ports.items():
            _await_port(port, processes[name])
        answers = (Topic.FINE_TUNE_STATUS, Topic.SNAPSHOT_PARTS, Topic.TRAINING_REPORTS)
        with Reader(settings, Topic.DEAD_LETTERS, *answers) as reader:
            return Fuzz(seed, settings, processes, ports).run(count, seconds, reader)
    finally:
        for process in processes.values():
            process.stop()


def _await_port(port: int, process: ChildProcess) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            assert process.alive, process.log.read_text()[-3000:]
            assert time.monotonic() < deadline, process.log.read_text()[-3000:]
            time.sleep(0.1)
        else:
            return
