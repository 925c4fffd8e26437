"""Ingest throughput of the worker, of a Faust agent with an empty body and of a bare consumer; then the cost of a large
state, of recovery and of exports, and disk usage. The last line of output is one JSON object.

One broker, one set of messages, one worker process with RocksDB. Each run is a separate process that starts with
nothing prefetched. The worker's run ends when the next offset after the last log is in its table, which is written only
once the changelog has acknowledged the log's effects. Runs of the three kinds alternate, so that noise on the machine
affects them equally.
"""

import bisect
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from foldtune.events import ChatLog, ChatLogBatch, FineTuneRequested, RetrievedPassage, SnapshotPart, now
from foldtune.kafka import Publisher, client_options, consumer
from foldtune.knobs import DataSelection
from foldtune.settings import Settings
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from infra.local.options import LocalOptions
from infra.local.stack import LocalServers
from streams.partitions.positions import offset_key

RUN_SCRIPT = Path(__file__).with_name("ingest_runs.py")
FOLDERS = 50
ENVELOPE_LOGS = 100
# The ingest latency run: logs a second, seconds between exports, and their number.
_STEADY_RATE, _IDLE_SECONDS, _EXPORTS = 100, 10, 3
# The worker compacts every 5 s, the broker checks for compaction every 15.
_COMPACTION_WAIT_SECONDS = 20
_START = datetime.now(UTC) - timedelta(days=30)


def chat_log(number: int) -> ChatLog:
    """A log of about 800 bytes with five retrieved passages."""
    folder = f"folder-{number * 7919 % FOLDERS}"
    retrieved = tuple(
        RetrievedPassage(
            document_id=f"doc-{(number * 7 + rank) % 9000}",
            folder_id=folder,
            rank=rank,
            score=round(0.9 - 0.03 * rank, 4),
        )
        for rank in range(1, 6)
    )
    return ChatLog(
        log_id=f"log-{number:09d}",
        occurred_at=_START + timedelta(seconds=number),
        agent_id="helpdesk",
        conversation_id=f"c-{number // 4}",
        user_id=f"u-{number % 5000}",
        question=f"How do I change setting {number} of the thing on the second page?",
        answer="Open the page, choose the setting, change it and save. " * 2,
        folder_id=folder,
        retrieved=retrieved,
        cited_document_ids=(retrieved[0].document_id,),
    )


class IngestBenchmark:
    """One set of topics on the servers, and the processes that are measured on it."""

    def __init__(self, servers: LocalServers, folder: Path, name: str) -> None:
        self._servers = servers
        self._folder = folder
        self._name = name
        self._runs = 0
        os.environ.update(self._environment("publisher"))
        self.settings = Settings()
        create_topics(self.settings.kafka, tuple(Topic))

    def produce(self, first: int, count: int) -> None:
        """Publish single logs."""
        with Publisher(self.settings.kafka) as publisher:
            for number in range(first, first + count):
                log = chat_log(number)
                publisher.send(Topic.CHAT_LOGS, log, key=log.folder_id)
                if number % 20_000 == 0:
                    publisher.flush()

    def produce_envelopes(self, count: int) -> None:
        """Publish envelopes of logs, each of one folder."""
        pending: dict[str, list[ChatLog]] = {}
        with Publisher(self.settings.kafka) as publisher:
            for number in range(count):
                log = chat_log(number)
                logs = pending.setdefault(log.folder_id, [])
                logs.append(log)
                if len(logs) == ENVELOPE_LOGS:
                    batch = ChatLogBatch(folder_id=log.folder_id, logs=tuple(pending.pop(log.folder_id)))
                    publisher.send(Topic.CHAT_LOGS, batch, key=log.folder_id)

    def end_offsets(self, topic: str | None = None) -> dict[int, int]:
        """End offset of each partition of ``topic`` (default: the topic of the logs)."""
        topic = topic or Topic.CHAT_LOGS.named(self.settings.kafka.topic_prefix)
        partitions = [TopicPartition(topic, number) for number in range(self.settings.kafka.partitions)]
        with consumer(self.settings.kafka) as client:
            return {partition.partition: offset for partition, offset in client.end_offsets(partitions).items()}

    def measure(self, kind: str, app_id: str | None = None) -> dict[str, float]:
        """Run one measured process to its end and return the JSON object that it printed last."""
        self._runs += 1
        app_id = app_id or f"{self._name}-{kind}-{self._runs}"
        ends = self.end_offsets()
        target = {"BENCH_ENDS": json.dumps(ends), "BENCH_EVENTS": str(sum(ends.values()))}
        with (self._folder / f"{app_id}.log").open("ab") as log:
            process = subprocess.run(
                [sys.executable, RUN_SCRIPT, kind],
                env=os.environ | self._environment(app_id) | target,
                stdout=subprocess.PIPE,
                stderr=log,
                check=True,
                timeout=900,
            )
        result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
        typer.echo(f"{self._name:>10} {kind:>10} {result}", err=True)
        return result

    def disk_usage(self, app_id: str, first: int, step: int, rounds: int, **settings: str) -> list[dict[str, float]]:
        """Megabytes on the worker's and on the broker's disk after each of ``rounds`` rounds of ``step`` logs."""
        create_topics(self.settings.kafka, (), (changelog := f"{app_id}-training-sets-changelog",))
        files = {"rocksdb": (self._folder / app_id, "*"), "changelog": (self._folder, f"{changelog}-*/*")}
        usage = []
        with self._worker(app_id, **settings):
            for number in range(rounds):
                self.produce(first + number * step, step)
                time.sleep(_COMPACTION_WAIT_SECONDS)
                sizes = {name: round(_megabytes(*pattern), 1) for name, pattern in files.items()}
                usage.append({"logs": (number + 1) * step, **sizes})
                typer.echo(f"{self._name:>10} {usage[-1]}", err=True)
        return usage

    def delete_local_state(self, app_id: str) -> None:
        """Simulate the loss of the worker's disk."""
        shutil.rmtree(self._folder / app_id)

    def measure_exports(self, app_id: str, folders: tuple[str, ...], first: int) -> dict[str, Any]:
        """Duration of snapshots, and ingest latency before and during each, with logs numbered from ``first``."""
        logs, changelog = Topic.CHAT_LOGS.named(self.settings.kafka.topic_prefix), f"{app_id}-training-sets-changelog"
        self._delay_compaction(changelog)
        start_offsets = {topic: self.end_offsets(topic) for topic in (logs, changelog)}
        stop = threading.Event()
        producer = threading.Thread(target=self._produce_steadily, args=(first, stop))
        exports: list[tuple[float, float, list[SnapshotPart]]] = []
        with self._worker(app_id), Publisher(self.settings.kafka) as publisher:
            producer.start()
            while not any(map(_is_log_offset, self._read(changelog, start_offsets[changelog]))):
                time.sleep(0.5)
            # Wait until the backlog of the worker's start is ingested.
            time.sleep(_IDLE_SECONDS)
            for number in range(_EXPORTS):
                time.sleep(_IDLE_SECONDS)
                request = FineTuneRequested(
                    request_id=f"r{time.time_ns()}",
                    model=f"bench-{first}-{number}",
                    requested_at=now(),
                    data=DataSelection(folders=folders),
                )
                requested = time.time()
                parts = _export(self.settings, publisher, request)
                exports.append((requested, time.time(), parts))
            time.sleep(_IDLE_SECONDS)
            stop.set()
            producer.join()
        published = list(self._read(logs, start_offsets[logs]))
        next_offsets = filter(_is_log_offset, self._read(changelog, start_offsets[changelog]))
        latencies = _latencies(published, next_offsets)

        def p99_ms(start: float, end: float) -> float:
            window = [latency for published_at, latency in latencies if start <= published_at < end]
            return round(1000 * float(np.percentile(window, 99)), 1)

        before = [p99_ms(requested - _IDLE_SECONDS, requested) for requested, _, _ in exports]
        during = [p99_ms(requested, finished) for requested, finished, _ in exports]
        all_parts = [part for _, _, parts in exports for part in parts]
        return {
            "examples": [sum(part.positives for part in parts) for _, _, parts in exports],
            "seconds": [round(finished - requested, 2) for requested, finished, _ in exports],
            "s3_share": round(
                sum(part.store_seconds for part in all_parts) / sum(part.seconds for part in all_parts), 3
            ),
            "ingest_p99_calm_ms": before,
            "ingest_p99_exporting_ms": during,
            "exporting_vs_calm": round(statistics.median(during) / statistics.median(before), 2),
        }

    def _delay_compaction(self, changelog: str) -> None:
        # Compaction would delete most of the records whose timestamps say when a log became durable.
        admin = KafkaAdminClient(**client_options(self.settings.kafka))
        options = {"min.compaction.lag.ms": "3600000"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, changelog, options)])
        admin.close()

    @contextmanager
    def _worker(self, app_id: str, **settings: str) -> Iterator[None]:
        environment = os.environ | self._environment(app_id) | settings
        with (self._folder / f"{app_id}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "foldtune", "worker"], env=environment, stdout=log, stderr=log
            )
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(30)

    def _produce_steadily(self, first: int, stop: threading.Event) -> None:
        with Publisher(self.settings.kafka) as publisher:
            for number in itertools.count(first):
                if stop.is_set():
                    return
                log = chat_log(number)
                publisher.publish(Topic.CHAT_LOGS, log, key=log.folder_id)
                time.sleep(1 / _STEADY_RATE)

    def _read(self, topic: str, start_offsets: dict[int, int]) -> Iterator[Any]:
        """The records of a topic from ``start_offsets`` to its current end."""
        with consumer(self.settings.kafka) as client:
            starts = {TopicPartition(topic, number): offset for number, offset in start_offsets.items()}
            client.assign(list(starts))
            for partition, offset in starts.items():
                client.seek(partition, offset)
            ends = client.end_offsets(list(starts))
            while any(client.position(partition) < end for partition, end in ends.items()):
                for records in client.poll(timeout_ms=500).values():
                    yield from records

    def _environment(self, app_id: str) -> dict[str, str]:
        return self._servers.environment | {
            "FOLDTUNE_KAFKA__TOPIC_PREFIX": f"{self._name}-",
            "FOLDTUNE_WORKER__APP_ID": app_id,
            "FOLDTUNE_WORKER__DATA_DIR": str(self._folder / app_id),
            "FOLDTUNE_LOG_LEVEL": "WARNING",
        }


def _megabytes(folder: Path, pattern: str) -> float:
    size = 0
    for path in folder.rglob(pattern):
        # RocksDB and the broker delete files concurrently.
        with suppress(FileNotFoundError):
            size += path.stat().st_blocks * 512
    return size / 1e6


def _is_log_offset(record: Any) -> bool:
    """Whether a changelog record holds the next offset of the logs' topic."""
    return bool(record.key == offset_key(Topic.CHAT_LOGS))


def _latencies(published: list[Any], next_offsets: Iterator[Any]) -> list[tuple[float, float]]:
    """Publication time of each log, and the seconds until a next offset after it was in the changelog."""
    written: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for record in next_offsets:
        written[record.partition].append((int(record.value), record.timestamp / 1000))
    latencies = []
    for record in published:
        offsets, published_at = written[record.partition], record.timestamp / 1000
        index = bisect.bisect_right(offsets, (record.offset, math.inf))
        # The last logs may have been published after the worker stopped.
        if index < len(offsets):
            latencies.append((published_at, offsets[index][1] - published_at))
    return latencies


def _export(settings: Settings, publisher: Publisher, request: FineTuneRequested) -> list[SnapshotPart]:
    """Request a snapshot and wait for the parts of all partitions."""
    publisher.publish(Topic.FINE_TUNE_REQUESTS, request, key=request.model)
    parts: dict[int, SnapshotPart] = {}
    with consumer(settings.kafka, Topic.SNAPSHOT_PARTS) as client:
        while len(parts) < settings.kafka.partitions:
            for records in client.poll(timeout_ms=500).values():
                for record in records:
                    part = SnapshotPart.model_validate_json(record.value)
                    if part.request_id == request.request_id:
                        parts[part.partition] = part
    return list(parts.values())


def main(
    events: Annotated[int, typer.Option(help="Number of logs in a throughput run.")] = 200_000,
    repeats: Annotated[int, typer.Option(help="Number of runs of each kind.")] = 3,
    state: Annotated[int, typer.Option(help="Number of logs in the large state.")] = 1_000_000,
) -> None:
    """Run the benchmark; the last line of output is one JSON object."""
    folder = Path(tempfile.mkdtemp(prefix="foldtune-bench-"))
    result: dict[str, object] = {"cores": os.cpu_count(), "events": events}
    options = LocalOptions(data_dir=folder / "servers", kafka_port=None, s3_port=None, keep_data=False)
    try:
        with LocalServers(options) as servers:
            result |= _throughput(servers, folder, events, repeats)
            result |= _envelopes(servers, folder, events)
            result |= _growth(servers, folder, state)
            result |= _disk(servers, folder, state)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps(result) + "\n")


def _throughput(servers: LocalServers, folder: Path, events: int, repeats: int) -> dict[str, object]:
    benchmark = IngestBenchmark(servers, folder, "single")
    benchmark.produce(0, events)
    runs: dict[str, list[float]] = {kind: [] for kind in ("noop", "worker", "raw")}
    for _ in range(repeats):
        for kind, rates in runs.items():
            rates.append(benchmark.measure(kind)["per_second"])
    ratios = {other: [a / b for a, b in zip(runs["worker"], runs[other], strict=True)] for other in ("noop", "raw")}
    return {
        "per_second": {kind: [round(rate) for rate in rates] for kind, rates in runs.items()},
        "single_vs_noop": round(statistics.median(ratios["noop"]), 2),
        "single_vs_noop_runs": [round(ratio, 2) for ratio in ratios["noop"]],
        "single_vs_raw": round(statistics.median(ratios["raw"]), 2),
    }


def _envelopes(servers: LocalServers, folder: Path, events: int) -> dict[str, object]:
    benchmark = IngestBenchmark(servers, folder, "envelopes")
    benchmark.produce_envelopes(events)
    return {"envelope_logs_per_s": round(benchmark.measure("worker")["per_second"] * ENVELOPE_LOGS)}


def _growth(servers: LocalServers, folder: Path, state: int) -> dict[str, object]:
    benchmark = IngestBenchmark(servers, folder, "growth")
    step = 100_000
    benchmark.produce(0, 10_000)
    benchmark.measure("worker", "grown")
    benchmark.produce(10_000, step)
    small = benchmark.measure("worker", "grown")
    benchmark.produce(10_000 + step, state - 10_000 - step)
    benchmark.measure("worker", "grown")
    benchmark.produce(state, step)
    large = benchmark.measure("worker", "grown")
    # One new log only: the time until it is durable is that of a restart.
    benchmark.produce(state + step, 1)
    with_rocksdb = benchmark.measure("worker", "grown")
    changelog = benchmark.measure("changelog", "grown")
    benchmark.delete_local_state("grown")
    benchmark.produce(state + step + 1, 1)
    without_rocksdb = benchmark.measure("worker", "grown")
    folders = tuple(f"folder-{number}" for number in range(max(1, FOLDERS * 100_000 // state)))
    snapshot = benchmark.measure_exports("grown", folders, state + step + 2)
    return {
        "growth": round(small["per_second"] / large["per_second"], 3),
        "rss_growth": round(large["rss"] / small["rss"], 3),
        "recovery_s": {
            "kept": round(with_rocksdb["ready_seconds"], 2),
            "lost": round(without_rocksdb["ready_seconds"], 2),
            "changelog_records": changelog["events"],
            "lost_vs_raw": round(changelog["events"] / without_rocksdb["ready_seconds"] / changelog["per_second"], 3),
        },
        "snapshot": snapshot,
    }


def _disk(servers: LocalServers, folder: Path, logs: int) -> dict[str, object]:
    rounds = 10
    benchmark = IngestBenchmark(servers, folder, "disk")
    retained = logs // rounds
    usage = benchmark.disk_usage("bounded", 0, retained, rounds, FOLDTUNE_SETS__MAX_EXAMPLES=str(retained // FOLDERS))
    return {"disk_mb": {"logs_kept": retained, "after": usage}}


if __name__ == "__main__":
    typer.run(main)
