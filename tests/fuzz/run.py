"""One run: real servers, a worker, a launcher and the HTTP API; random events in batches, each followed by probes."""

import asyncio
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

from foldtune.dead_letters import OFFSET_HEADER, PARTITION_HEADER, TOPIC_HEADER
from foldtune.events import FineTuneStatus
from foldtune.kafka import create_topics
from foldtune.settings import Settings
from foldtune.topics import DATA_TOPICS, Topic
from infra.local.options import LocalOptions
from infra.local.ports import free_port
from infra.local.stack import LocalServers
from tests.fuzz.events import CODECS, PARTITIONS, Case, Generator, http_call
from tests.support import ChildProcess, Reader, environment, settings_of

BATCH = 100
# A batch and the ends of all requests, on a busy machine.
PATIENCE = 180.0
_PAGE = 4096

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
    requests: dict[str, int] = field(default_factory=dict)
    http: dict[str, int] = field(default_factory=dict)
    probe_seconds: dict[str, float] = field(default_factory=dict)
    worker_mib: list[int] = field(default_factory=list)
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
        self._read = 0
        self._ends: dict[tuple[str, str], set[str]] = {}
        self._probes: list[float] = []

    def run(self, count: int, reader: Reader) -> Report:
        """Send ``count`` events, and compare what became of them with what was to."""
        with suppress(_StoppedError):
            asyncio.run(self._run(count, reader))
        self._compare()
        return self.report

    async def _run(self, count: int, reader: Reader) -> None:
        servers = self._settings.kafka.bootstrap_servers
        for codec in CODECS:
            producer = AIOKafkaProducer(bootstrap_servers=servers, compression_type=codec, max_request_size=4 << 20)
            await producer.start()
            self._producers[codec] = producer
        try:
            for start in range(0, count, BATCH):
                for _ in range(min(BATCH, count - start)):
                    await self._send(self._generator.case(self._random.choice(self._generator.topics)))
                for _ in range(BATCH // 20):
                    self._call_api()
                self._until(reader, self._all_letters, "dead letters")
                await self._probe(reader)
                resident = int(Path(f"/proc/{self._processes['worker'].pid}/statm").read_text().split()[1])
                self.report.worker_mib.append(resident * _PAGE >> 20)
            self._until(reader, self._all_ended, "ends of requests")
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
        self.report.records[case.topic.label] = self.report.records.get(case.topic.label, 0) + 1
        return origin

    async def _probe(self, reader: Reader) -> None:
        """How long the next record of each consumer takes, on every partition."""
        started = time.monotonic()
        topics = (Topic.CHAT_LOGS, Topic.FINE_TUNE_REQUESTS, Topic.SNAPSHOT_COMMANDS)
        sent = [
            await self._send(Case(topic, number, b"{probe", letters=1))
            for topic in topics
            for number in range(PARTITIONS)
        ]
        self._until(reader, lambda: all(self._letters[origin] for origin in sent if origin), "probes")
        self._probes.append(time.monotonic() - started)

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
        if record.topic == Topic.DEAD_LETTERS.named(self._prefix):
            headers = {name: value.decode() for name, value in record.headers}
            self._letters[headers[TOPIC_HEADER], int(headers[PARTITION_HEADER]), int(headers[OFFSET_HEADER])] += 1
        elif record.value is not None:
            status = FineTuneStatus.model_validate_json(record.value)
            if status.state.terminal:
                self._ends.setdefault((status.model, status.request_id), set()).add(status.state.value)

    def _all_letters(self) -> bool:
        return all(self._letters[origin] >= case.letters for origin, case in self._cases.items())

    def _all_ended(self) -> bool:
        return all(case.request in self._ends for case in self._cases.values() if case.request)

    def _check_processes(self) -> None:
        for name, process in self._processes.items():
            if not process.alive:
                self.report.wrong.append(f"{name} has ended: {process.log.read_text()[-2000:]}")
                raise _StoppedError

    def _compare(self) -> None:
        report = self.report
        for origin, case in self._cases.items():
            if self._letters[origin] != case.letters:
                text = f"{self._letters[origin]} dead letters instead of {case.letters}"
                report.wrong.append(f"{origin}: {text}: {(case.value or b'')[:200]!r}")
            if case.request and len(self._ends.get(case.request, ())) != 1:
                report.wrong.append(f"{case.request}: ended as {self._ends.get(case.request)}")
        if unknown := set(self._letters) - set(self._cases):
            report.wrong.append(f"dead letters of {len(unknown)} records that were not sent: {sorted(unknown)[:5]}")
        report.dead_letters = dict(Counter(origin[0].removeprefix(self._prefix) for origin in self._letters.elements()))
        report.requests = dict(Counter(state for states in self._ends.values() for state in states))
        report.stored = self._stored() if self._processes["worker"].alive else 0
        if (wanted := sum(case.stored for case in self._cases.values())) != report.stored:
            report.wrong.append(f"{wanted} events were to be stored, and {report.stored} were")
        # The first ones say enough.
        del report.wrong[20:]
        if self._probes:
            report.probe_seconds = {"median": statistics.median(self._probes), "longest": max(self._probes)}
        middle = report.worker_mib[len(report.worker_mib) // 2 :]
        if middle and middle[-1] > middle[0] * 1.2 + 20:
            report.wrong.append(f"the worker's memory has grown: {middle[0]} to {middle[-1]} MiB")

    def _stored(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['worker']}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        labels = {f'foldtune_records_total{{topic="{topic.label}"}}' for topic in DATA_TOPICS}
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.rpartition(" ")[0] in labels)


def run(seed: int, count: int, folder: Path) -> Report:
    """``fuzz`` on servers of its own."""
    options = LocalOptions(data_dir=folder / "servers", kafka_port=None, s3_port=None, keep_data=False)
    with LocalServers(options) as servers:
        return fuzz(servers, seed, count, folder)


def fuzz(servers: LocalServers, seed: int, count: int, folder: Path) -> Report:
    """Start a worker, a launcher and the HTTP API, and send them ``count`` events."""
    ports = {"worker": free_port(), "api": free_port()}
    variables = environment(servers, folder, FOLDTUNE_WORKER__HTTP_PORT=str(ports["worker"]))
    settings = settings_of(variables)
    create_topics(settings.kafka, tuple(Topic))
    commands = {"worker": ["worker"], "launcher": ["launcher"], "api": ["api", "--port", str(ports["api"])]}
    processes = {name: ChildProcess(command, variables, folder / f"{name}.log") for name, command in commands.items()}
    try:
        for name, port in ports.items():
            _await_port(port, processes[name])
        with Reader(settings, Topic.DEAD_LETTERS, Topic.FINE_TUNE_STATUS) as reader:
            return Fuzz(seed, settings, processes, ports).run(count, reader)
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
