"""Monitoring and stopping of worker processes."""

import http.client
import json
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from foldtune.kafka import Publisher, partition_of
from foldtune.knobs import DataSelection
from foldtune.settings import Settings
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from infra.local.options import LocalOptions
from infra.local.ports import free_port
from infra.local.stack import LocalServers
from tests.integration.conftest import StartWorker
from tests.integration.test_worker import ended, exported, jobs, publish_history, publish_request, snapshot
from tests.support import ChildProcess, Reader, environment, fine_tune_request, settings_of

DASHBOARD = Path(__file__).parents[2] / "infra/grafana/foldtune.json"
WITH_HTTP = {"FOLDTUNE_WORKER__HTTP_PORT": "0"}
MANY = 3_000

Sample = tuple[str, tuple[tuple[str, str], ...]]


class MonitoredWorker:
    """A worker process and its HTTP endpoints."""

    def __init__(self, worker: ChildProcess) -> None:
        self.worker = worker

    def get(self, path: str) -> tuple[int, str]:
        """HTTP status and body; status 0 while the server is not reachable."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port()}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (urllib.error.URLError, StopIteration, TimeoutError, ConnectionError):
            return 0, ""

    def samples(self) -> dict[Sample, float]:
        """All metric samples by name and sorted labels."""
        status, text = self.get("/metrics")
        assert status in {0, 200}
        families = text_string_to_metric_families(text)
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, tuple(sorted(labels.items()))))

    def _port(self) -> int:
        lines = self.worker.log.read_text().splitlines()
        port: int = next(json.loads(line)["port"] for line in reversed(lines) if '"http server listening"' in line)
        return port


def until(condition: Callable[[], bool], seconds: float = 60) -> float:
    """Wait for a condition; the elapsed seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - started


def ready(worker: MonitoredWorker) -> bool:
    return worker.get("/ready")[0] == 200


def seconds_to_stop(worker: ChildProcess) -> float:
    started = time.monotonic()
    assert worker.stop(seconds=30) == 0
    return time.monotonic() - started


# ── Monitoring ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_count_the_work_and_cover_the_dashboard(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    worker = MonitoredWorker(start_worker(**WITH_HTTP))
    publish_history(publisher, "../../alpha", 25)
    for value in (b"{nope", b'{"log_id": 1}', b"x" * 600_000):
        publisher.send_raw(Topic.CHAT_LOGS, value, key="alpha")
    publisher.send_raw(Topic.FINE_TUNE_REQUESTS, b"{nope", key="model")
    publish_request(publisher, fine_tune_request("good"))
    publish_request(publisher, fine_tune_request("bad", model="other", data=DataSelection(folders=("nowhere",))))
    with Reader(settings, Topic.TRAINING_JOBS, Topic.FINE_TUNE_STATUS) as reader:
        reader.until(lambda records: bool(jobs(records)) and ended("bad")(records))
    wanted: dict[Sample, float] = {
        ("foldtune_records_total", (("topic", "chat-logs"),)): 25,
        ("foldtune_records_total", (("topic", "documents"),)): 25,
        ("foldtune_rejected_records_total", (("reason", "unreadable"), ("topic", "chat-logs"))): 1,
        ("foldtune_rejected_records_total", (("reason", "oversized"), ("topic", "chat-logs"))): 1,
        ("foldtune_rejected_records_total", (("reason", "invalid"), ("topic", "chat-logs"))): 1,
        ("foldtune_rejected_records_total", (("reason", "unreadable"), ("topic", "fine-tune-requests"))): 1,
        ("foldtune_folder_logs", (("folder", "../../alpha"),)): 25,
        ("foldtune_requests_ended_total", (("state", "rejected"),)): 1,
        ("foldtune_snapshot_seconds_count", ()): 8,
        ("foldtune_snapshot_store_seconds_count", ()): 8,
        ("foldtune_partitions_owned", ()): 4,
        ("foldtune_foreign_writes_total", ()): 0,
    }
    # Maintenance and the lag query run periodically.
    until(lambda: wanted.items() <= worker.samples().items(), 30)
    until(lambda: {value for (name, _), value in worker.samples().items() if name == "foldtune_lag_records"} == {0}, 30)
    expressions = re.findall(r'"expr": "(.*)"', DASHBOARD.read_text())
    named = {name for expression in expressions for name in re.findall(r"foldtune_\w+", expression)}
    assert len(named) >= 8
    until(lambda: named <= {name for name, _ in worker.samples()}, 30)
    # Every line of the log is a JSON object, including those of libraries.
    lines = [json.loads(line) for line in worker.worker.log.read_text().splitlines()]
    assert {line["request_id"] for line in lines if line["event"] == "snapshot exported"} == {"good", "bad"}


def test_series_of_revoked_partitions_are_removed(
    settings: Settings, publisher: Publisher, start_worker: StartWorker
) -> None:
    one = MonitoredWorker(start_worker("one", **WITH_HTTP))
    for folder in ("alpha", "beta", "epsilon", "../../etc"):
        publish_history(publisher, folder, 5)
    until(lambda: len(folders(one)) == 4)
    two = MonitoredWorker(start_worker("two", **WITH_HTTP))
    until(lambda: one.value("foldtune_partitions_owned") == 2 and two.value("foldtune_partitions_owned") == 2)
    until(lambda: sorted([*folders(one), *folders(two)]) == ["../../etc", "alpha", "beta", "epsilon"])
    until(lambda: not lagging(one) & lagging(two) and len(lagging(one) | lagging(two)) == 4)


def folders(worker: MonitoredWorker) -> list[str]:
    return [dict(labels)["folder"] for name, labels in worker.samples() if name == "foldtune_folder_logs"]


def lagging(worker: MonitoredWorker) -> set[str]:
    return {dict(labels)["partition"] for name, labels in worker.samples() if name == "foldtune_lag_records"}


def test_a_port_in_use_is_reported_in_one_line(variables: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        worker = ChildProcess(["worker"], variables | {"FOLDTUNE_WORKER__HTTP_PORT": port}, tmp_path / "log")
        until(lambda: not worker.alive)
    assert worker.stop() == 2
    (line,) = [text for text in worker.log.read_text().splitlines() if text.startswith("foldtune: ")]
    assert "worker.http_port" in line
    assert port in line
    assert "Traceback" not in worker.log.read_text()


# ── Stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    """Servers that these tests may suspend."""
    folder = tmp_path_factory.mktemp("own-servers")
    with LocalServers(LocalOptions(data_dir=folder, kafka_port=None, s3_port=None, keep_data=False)) as servers:
        yield servers


@contextmanager
def suspended_broker(servers: LocalServers) -> Iterator[None]:
    """Suspend the broker: it accepts connections and does not respond."""
    broker = psutil.Process(servers.kafka.pid)
    broker.suspend()
    try:
        yield
    finally:
        broker.resume()


@contextmanager
def hanging_object_store() -> Iterator[tuple[str, threading.Event]]:
    """A server that accepts connections and never responds; its address, and an event for the first connection."""
    connected = threading.Event()
    connections: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        try:
            while True:
                connections.append(listener.accept()[0])
                connected.set()
        except OSError:
            return

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connected
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        for connection in connections:
            connection.close()


@contextmanager
def exporting_worker(variables: dict[str, str], log: Path) -> Iterator[MonitoredWorker]:
    """A worker whose object store hangs while it exports a folder of 25 logs for the request ``r``."""
    kafka = settings_of(variables).kafka
    create_topics(kafka, tuple(Topic))
    with hanging_object_store() as (address, connected):
        process = ChildProcess(["worker"], variables | WITH_HTTP | {"FOLDTUNE_S3__ENDPOINT_URL": address}, log)
        try:
            worker = MonitoredWorker(process)
            until(lambda: ready(worker))
            # It was checked at the start.
            connected.clear()
            with Publisher(kafka) as publisher:
                publish_history(publisher, "alpha", 25)
                publish_request(publisher, fine_tune_request("r"))
            assert connected.wait(60)
            yield worker
        finally:
            process.kill()


def test_an_unresponsive_broker_makes_a_worker_unready_but_not_unstoppable(
    own_servers: LocalServers, tmp_path: Path
) -> None:
    variables = environment(own_servers, tmp_path)
    settings = settings_of(variables)
    create_topics(settings.kafka, tuple(Topic))
    # With a longer session timeout, only the unresponsive broker can make the worker unready.
    process = ChildProcess(
        ["worker"], variables | WITH_HTTP | {"FOLDTUNE_WORKER__SESSION_TIMEOUT": "PT60S"}, tmp_path / "l"
    )
    try:
        worker = MonitoredWorker(process)
        # Healthy before it is ready.
        until(lambda: worker.get("/health")[0] == 200)
        until(lambda: ready(worker))
        with suspended_broker(own_servers):
            until(lambda: "the brokers have not answered" in worker.get("/ready")[1])
            assert worker.get("/ready")[0] == 503
            assert worker.get("/health") == (200, "ok\n")
            assert seconds_to_stop(process) < 10
    finally:
        process.kill()


def test_a_worker_waits_for_brokers_that_are_gone_and_stops_without_them(
    own_servers: LocalServers, tmp_path: Path
) -> None:
    with exporting_worker(environment(own_servers, tmp_path), tmp_path / "log") as worker:
        with suspended_broker(own_servers):
            # Longer than the two sessions in which a worker has to make progress otherwise.
            time.sleep(25)
            assert worker.worker.alive
        until(lambda: ready(worker), 60)
        with suspended_broker(own_servers):
            assert seconds_to_stop(worker.worker) < 10


def test_the_api_stops_while_the_broker_hangs(own_servers: LocalServers, tmp_path: Path) -> None:
    variables = environment(own_servers, tmp_path)
    create_topics(settings_of(variables).kafka, tuple(Topic))
    url = f"http://127.0.0.1:{(port := free_port())}"
    process = ChildProcess(["api", "--port", str(port)], variables, tmp_path / "log")

    def call(path: str, body: bytes | None = None) -> int:
        try:
            request = urllib.request.Request(f"{url}{path}", body, {"Content-Type": "application/json"})  # noqa: S310
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return int(answer.status)
        except (OSError, http.client.HTTPException):
            return 0

    try:
        until(lambda: call("/health") == 200)
        with suspended_broker(own_servers), ThreadPoolExecutor() as pool:
            answer = pool.submit(call, "/requests", b'{"model": "helpdesk"}')
            with pytest.raises(TimeoutError):
                answer.result(2)
            assert seconds_to_stop(process) < 25
    finally:
        process.kill()


def test_a_recovering_worker_is_unready_with_a_reason(variables: dict[str, str], start_worker: StartWorker) -> None:
    worker = MonitoredWorker(start_worker(**WITH_HTTP))
    seen: list[tuple[int, str]] = []

    def recovered() -> bool:
        seen.append(worker.get("/ready"))
        return ready(worker)

    until(recovered)
    reasons = {text.strip() for status, text in seen if status == 503}
    assert reasons
    assert reasons <= {"the tables are being recovered", "the partitions are being rebalanced"}


@pytest.mark.parametrize("signal_twice", [False, pytest.param(True, marks=pytest.mark.matrix)], ids=["once", "twice"])
def test_a_worker_stops_during_an_export(
    settings: Settings, variables: dict[str, str], start_worker: StartWorker, tmp_path: Path, signal_twice: bool
) -> None:
    # As the next one is started.
    named = {"FOLDTUNE_WORKER__INSTANCE_ID": "one", "FOLDTUNE_WORKER__DATA_DIR": str(tmp_path / "one")}
    with exporting_worker(variables | named, tmp_path / "log") as worker:
        if signal_twice:
            worker.worker.send(signal.SIGTERM)
            until(lambda: '"stopping"' in worker.worker.log.read_text())
        assert seconds_to_stop(worker.worker) < (3 if signal_twice else 10)
    # The next worker repeats the interrupted export.
    start_worker("one")
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        (job,) = jobs(reader.until(lambda records: bool(jobs(records))))
    assert len(exported(settings, snapshot(settings, job), "examples")) == 25


def test_ingest_goes_on_while_the_object_store_hangs(local_servers: LocalServers, tmp_path: Path) -> None:
    # More exports at a time than asyncio's own pool has threads.
    variables = environment(local_servers, tmp_path, FOLDTUNE_KAFKA__PARTITIONS="40")
    with (
        exporting_worker(variables, tmp_path / "log") as worker,
        Publisher(settings_of(variables).kafka) as publisher,
    ):
        for number in range(10):
            publish_history(publisher, f"folder {number}", 25)
        until(lambda: worker.value("foldtune_records_total", topic="chat-logs") == 275, 20)
        assert ready(worker)


# ── Standby ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_standby_takes_over_from_a_killed_worker(
    settings: Settings, publisher: Publisher, start_worker: StartWorker, tmp_path: Path
) -> None:
    replicated = WITH_HTTP | {"FOLDTUNE_WORKER__STANDBY_REPLICAS": "1"}
    names = {MonitoredWorker(start_worker(name, **replicated)): name for name in ("one", "two")}
    workers = list(names)
    until(lambda: all(worker.value("foldtune_partitions_owned") == 2 for worker in workers))
    publish_history(publisher, "alpha", MANY)
    publish_history(publisher, "beta", 25)
    until(lambda: sum(worker.value("foldtune_folder_logs", folder="alpha") or 0 for worker in workers) >= MANY)
    (active,) = [worker for worker in workers if worker.value("foldtune_folder_logs", folder="alpha")]
    (survivor,) = [worker for worker in workers if worker is not active]
    wal_files = f"{names[survivor]}/**/*training-sets-{partition_of('alpha', 4)}.db/*.log"
    until(lambda: sum(file.stat().st_size for file in tmp_path.glob(wal_files)) > MANY * 100)
    active.worker.kill()
    publish_history(publisher, "alpha-after", 25)
    until(lambda: survivor.value("foldtune_partitions_owned") == 4)
    publish_request(publisher, fine_tune_request("r"))
    with Reader(settings, Topic.TRAINING_JOBS) as reader:
        (job,) = jobs(reader.until(lambda records: bool(jobs(records))))
    examples = exported(settings, snapshot(settings, job), "examples")
    assert Counter(row["folder_id"] for row in examples) == {"alpha": MANY, "beta": 25, "alpha-after": 25}
    assert len({row["log_id"] for row in examples}) == MANY + 50
    # The survivor writes only to partitions that it owns: no foreign writes.
    assert survivor.value("foldtune_foreign_writes_total") == 0
