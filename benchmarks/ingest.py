"""How fast logs become durable state, beside a Faust agent that does nothing and a bare consumer; one JSON object last.

One broker, one set of messages, one worker process, RocksDB on. Each measured run is a process of its own that starts
with nothing prefetched; the worker's ends when the place behind the last log is written, which it is only once the
changelog has acknowledged what followed from it. Runs of the three kinds take turns, so that a noisy machine disturbs
them alike.
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
from foldtune.kafka import Publisher, client_options, consumer, create_topics
from foldtune.knobs import DataSelection
from foldtune.settings import Settings
from foldtune.topics import Topic
from infra.local.options import LocalOptions
from infra.local.stack import LocalServers
from streams.partitions.consumer import offset_key

RUNS = Path(__file__).with_name("ingest_runs.py")
FOLDERS = 50
ENVELOPE_LOGS = 100
# Of the run that measures how long a log takes to become durable, alone and during an export.
_STEADY_RATE, _CALM_SECONDS, _EXPORTS = 100, 10, 3
# The worker compacts every 5 s, the broker looks every 15.
_DISK_REST_SECONDS = 20
_START = datetime.now(UTC) - timedelta(days=30)


def chat_log(number: int) -> ChatLog:
    """A log of about 800 bytes, as an agent with five retrieved passages writes it."""
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


class Bench:
    """Servers, a set of topics and the processes that are measured on them."""

    def __init__(self, servers: LocalServers, folder: Path, name: str) -> None:
        self._servers = servers
        self._folder = folder
        self._name = name
        self._runs = 0
        os.environ.update(self._variables("publisher"))
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
        """Publish logs in envelopes of one folder each."""
        waiting: dict[str, list[ChatLog]] = {}
        with Publisher(self.settings.kafka) as publisher:
            for number in range(count):
                log = chat_log(number)
                logs = waiting.setdefault(log.folder_id, [])
                logs.append(log)
                if len(logs) == ENVELOPE_LOGS:
                    batch = ChatLogBatch(folder_id=log.folder_id, logs=tuple(waiting.pop(log.folder_id)))
                    publisher.send(Topic.CHAT_LOGS, batch, key=log.folder_id)

    def ends(self, topic: str | None = None) -> dict[int, int]:
        """The next offset of each partition of a topic, or of the logs."""
        topic = topic or Topic.CHAT_LOGS.named(self.settings.kafka.topic_prefix)
        places = [TopicPartition(topic, partition) for partition in range(self.settings.kafka.partitions)]
        with consumer(self.settings.kafka) as client:
            return {place.partition: end for place, end in client.end_offsets(places).items()}

    def measure(self, kind: str, app_id: str | None = None) -> dict[str, float]:
        """Run one measured process to its end; what it printed last."""
        self._runs += 1
        app_id = app_id or f"{self._name}-{kind}-{self._runs}"
        ends = self.ends()
        more = {"BENCH_ENDS": json.dumps(ends), "BENCH_EVENTS": str(sum(ends.values()))}
        with (self._folder / f"{app_id}.log").open("ab") as log:
            done = subprocess.run(
                [sys.executable, RUNS, kind],
                env=os.environ | self._variables(app_id) | more,
                stdout=subprocess.PIPE,
                stderr=log,
                check=True,
                timeout=900,
            )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        typer.echo(f"{self._name:>10} {kind:>10} {found}", err=True)
        return found

    def sizes(self, app_id: str, first: int, step: int, rounds: int, **bounds: str) -> list[dict[str, float]]:
        """Megabytes on disk, the worker's and the broker's, after each of some rounds of ``step`` logs."""
        create_topics(self.settings.kafka, (), (changelog := f"{app_id}-training-sets-changelog",))
        places = {"rocksdb": (self._folder / app_id, "*"), "changelog": (self._folder, f"{changelog}-*/*")}
        found = []
        with self._worker(app_id, **bounds):
            for number in range(rounds):
                self.produce(first + number * step, step)
                time.sleep(_DISK_REST_SECONDS)
                sizes = {name: round(_megabytes(*place), 1) for name, place in places.items()}
                found.append({"logs": (number + 1) * step, **sizes})
                typer.echo(f"{self._name:>10} {found[-1]}", err=True)
        return found

    def lose(self, app_id: str) -> None:
        """The worker's disk is gone."""
        shutil.rmtree(self._folder / app_id)

    def export(self, app_id: str, folders: tuple[str, ...], first: int) -> dict[str, Any]:
        """What snapshots take, and what each does to the logs, numbered from ``first``, that arrive in the meantime."""
        logs, changelog = Topic.CHAT_LOGS.named(self.settings.kafka.topic_prefix), f"{app_id}-training-sets-changelog"
        self._keep_every_record(changelog)
        since, end = {topic: self.ends(topic) for topic in (logs, changelog)}, threading.Event()
        steady = threading.Thread(target=self._produce_steadily, args=(first, end))
        exports: list[tuple[float, float, list[SnapshotPart]]] = []
        with self._worker(app_id), Publisher(self.settings.kafka) as publisher:
            steady.start()
            while not any(map(_is_place, self._records(changelog, since[changelog]))):
                time.sleep(0.5)
            # What has waited for the worker's start is taken in first.
            time.sleep(_CALM_SECONDS)
            for number in range(_EXPORTS):
                time.sleep(_CALM_SECONDS)
                request = FineTuneRequested(
                    request_id=f"r{time.time_ns()}",
                    model=f"bench-{first}-{number}",
                    requested_at=now(),
                    data=DataSelection(folders=folders),
                )
                asked = time.time()
                parts = _parts(self.settings, publisher, request)
                exports.append((asked, time.time(), parts))
            time.sleep(_CALM_SECONDS)
            end.set()
            steady.join()
        published = list(self._records(logs, since[logs]))
        latencies = _latencies(published, filter(_is_place, self._records(changelog, since[changelog])))

        def p99_ms(begun: float, ended: float) -> float:
            return round(1000 * float(np.percentile([took for at, took in latencies if begun <= at < ended], 99)), 1)

        calm = [p99_ms(asked - _CALM_SECONDS, asked) for asked, _, _ in exports]
        during = [p99_ms(asked, ended) for asked, ended, _ in exports]
        parts = [part for _, _, found in exports for part in found]
        return {
            "examples": [sum(part.positives for part in found) for _, _, found in exports],
            "seconds": [round(ended - asked, 2) for asked, ended, _ in exports],
            "s3_share": round(sum(part.store_seconds for part in parts) / sum(part.seconds for part in parts), 3),
            "ingest_p99_calm_ms": calm,
            "ingest_p99_exporting_ms": during,
            "exporting_vs_calm": round(statistics.median(during) / statistics.median(calm), 2),
        }

    def _keep_every_record(self, changelog: str) -> None:
        # Compaction would take away most of the records that tell when a log became durable.
        admin = KafkaAdminClient(**client_options(self.settings.kafka))
        options = {"min.compaction.lag.ms": "3600000"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, changelog, options)])
        admin.close()

    @contextmanager
    def _worker(self, app_id: str, **more: str) -> Iterator[None]:
        environment = os.environ | self._variables(app_id) | more
        with (self._folder / f"{app_id}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "foldtune", "worker"], env=environment, stdout=log, stderr=log
            )
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(30)

    def _produce_steadily(self, first: int, end: threading.Event) -> None:
        with Publisher(self.settings.kafka) as publisher:
            for number in itertools.count(first):
                if end.is_set():
                    return
                log = chat_log(number)
                publisher.publish(Topic.CHAT_LOGS, log, key=log.folder_id)
                time.sleep(1 / _STEADY_RATE)

    def _records(self, topic: str, since: dict[int, int]) -> Iterator[Any]:
        """The records of a topic from some offsets to its present end."""
        with consumer(self.settings.kafka) as client:
            places = {TopicPartition(topic, number): offset for number, offset in since.items()}
            client.assign(list(places))
            for place, offset in places.items():
                client.seek(place, offset)
            ends = client.end_offsets(list(places))
            while any(client.position(place) < end for place, end in ends.items()):
                for records in client.poll(timeout_ms=500).values():
                    yield from records

    def _variables(self, app_id: str) -> dict[str, str]:
        return self._servers.environment | {
            "FOLDTUNE_KAFKA__TOPIC_PREFIX": f"{self._name}-",
            "FOLDTUNE_WORKER__APP_ID": app_id,
            "FOLDTUNE_WORKER__DATA_DIR": str(self._folder / app_id),
            "FOLDTUNE_LOG_LEVEL": "WARNING",
        }


def _megabytes(folder: Path, pattern: str) -> float:
    size = 0
    for path in folder.rglob(pattern):
        # Both delete files while one looks.
        with suppress(FileNotFoundError):
            size += path.stat().st_blocks * 512
    return size / 1e6


def _is_place(record: Any) -> bool:
    return bool(record.key == offset_key(Topic.CHAT_LOGS))


def _latencies(published: list[Any], places: Iterator[Any]) -> list[tuple[float, float]]:
    """When each log was published, and the seconds until the place behind it was in the changelog."""
    reached: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for record in places:
        reached[record.partition].append((int(record.value), record.timestamp / 1000))
    found = []
    for record in published:
        mine, moment = reached[record.partition], record.timestamp / 1000
        after = bisect.bisect_right(mine, (record.offset, math.inf))
        # The last ones may have come after the worker's end.
        if after < len(mine):
            found.append((moment, mine[after][1] - moment))
    return found


def _parts(settings: Settings, publisher: Publisher, request: FineTuneRequested) -> list[SnapshotPart]:
    publisher.publish(Topic.FINE_TUNE_REQUESTS, request, key=request.model)
    found: dict[int, SnapshotPart] = {}
    with consumer(settings.kafka, Topic.SNAPSHOT_PARTS) as client:
        while len(found) < settings.kafka.partitions:
            for records in client.poll(timeout_ms=500).values():
                for record in records:
                    part = SnapshotPart.model_validate_json(record.value)
                    if part.request_id == request.request_id:
                        found[part.partition] = part
    return list(found.values())


def main(
    events: Annotated[int, typer.Option(help="Logs of a throughput run.")] = 200_000,
    repeats: Annotated[int, typer.Option(help="Turns of each kind.")] = 3,
    state: Annotated[int, typer.Option(help="Logs in the large state.")] = 1_000_000,
) -> None:
    """Measure and print one JSON object last."""
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
    bench = Bench(servers, folder, "single")
    bench.produce(0, events)
    runs: dict[str, list[float]] = {kind: [] for kind in ("noop", "worker", "raw")}
    for _ in range(repeats):
        for kind, found in runs.items():
            found.append(bench.measure(kind)["per_second"])
    pairs = {other: [a / b for a, b in zip(runs["worker"], runs[other], strict=True)] for other in ("noop", "raw")}
    return {
        "per_second": {kind: [round(one) for one in found] for kind, found in runs.items()},
        "single_vs_noop": round(statistics.median(pairs["noop"]), 2),
        "single_vs_noop_runs": [round(ratio, 2) for ratio in pairs["noop"]],
        "single_vs_raw": round(statistics.median(pairs["raw"]), 2),
    }


def _envelopes(servers: LocalServers, folder: Path, events: int) -> dict[str, object]:
    bench = Bench(servers, folder, "envelopes")
    bench.produce_envelopes(events)
    return {"envelope_logs_per_s": round(bench.measure("worker")["per_second"] * ENVELOPE_LOGS)}


def _growth(servers: LocalServers, folder: Path, state: int) -> dict[str, object]:
    bench = Bench(servers, folder, "growth")
    step = 100_000
    bench.produce(0, 10_000)
    bench.measure("worker", "grown")
    bench.produce(10_000, step)
    small = bench.measure("worker", "grown")
    bench.produce(10_000 + step, state - 10_000 - step)
    bench.measure("worker", "grown")
    bench.produce(state, step)
    large = bench.measure("worker", "grown")
    # Nothing new but one log: the time until it is in is the time of a restart.
    bench.produce(state + step, 1)
    kept = bench.measure("worker", "grown")
    changelog = bench.measure("changelog", "grown")
    bench.lose("grown")
    bench.produce(state + step + 1, 1)
    lost = bench.measure("worker", "grown")
    folders = tuple(f"folder-{number}" for number in range(max(1, FOLDERS * 100_000 // state)))
    snapshot = bench.export("grown", folders, state + step + 2)
    return {
        "growth": round(small["per_second"] / large["per_second"], 3),
        "rss_growth": round(large["rss"] / small["rss"], 3),
        "recovery_s": {
            "kept": round(kept["ready_seconds"], 2),
            "lost": round(lost["ready_seconds"], 2),
            "changelog_records": changelog["events"],
            "lost_vs_raw": round(changelog["events"] / lost["ready_seconds"] / changelog["per_second"], 3),
        },
        "snapshot": snapshot,
    }


def _disk(servers: LocalServers, folder: Path, logs: int) -> dict[str, object]:
    rounds = 10
    bench = Bench(servers, folder, "disk")
    kept = logs // rounds
    sizes = bench.sizes("bounded", 0, kept, rounds, FOLDTUNE_SETS__MAX_EXAMPLES=str(kept // FOLDERS))
    return {"disk_mb": {"logs_kept": kept, "after": sizes}}


if __name__ == "__main__":
    typer.run(main)
