"""The HTTP API with 100,000 statuses, 200 versions, 50 policies, 500 folders: time to a restart, latency by route,
memory; and a preview of 100,000 examples, which one worker answers.

The last line of output is one JSON object. Each call is on a connection of its own thread; latency is measured from the
moment at which a call was due, so that a slow answer counts for those behind it, too.
"""

import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from statistics import quantiles
from typing import Annotated

import typer

from foldtune.events import (
    MAX_STATS_AGENTS,
    MAX_STATS_DAYS,
    AgentCount,
    Block,
    ChatLog,
    ChatLogBatch,
    Condition,
    DocumentUpserted,
    FineTuneStatus,
    FolderDay,
    FolderStats,
    PolicyDecided,
    RetrainingPolicy,
    RetrievedPassage,
    RuleFigures,
    State,
    StateTime,
    now,
)
from foldtune.kafka import Publisher
from foldtune.policy import Rule
from foldtune.settings import Settings
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic, request_key
from infra.local.options import LocalOptions
from infra.local.ports import free_port
from infra.local.stack import LocalServers
from tests.support import ChildProcess, model_ready

MODELS, STATUSES, VERSIONS, FOLDERS = 50, 100_000, 200, 500
EXAMPLES, EXAMPLE_FOLDERS = 100_000, 100
RATE = 50
_FLUSH = 5_000
_CHANGES = 100
_START = datetime(2026, 1, 1, tzinfo=UTC)
READY_SECONDS = 180
_STATES = ("queued", "submitted", "running", "evaluating", "completed")
ROUTES = {
    "GET /requests": "/requests?limit=50",
    "GET /requests?model=": "/requests?model=model-7&state=completed&limit=50",
    "GET /requests/{id}": "/requests/r-4711",
    "GET /models/{model}/requests/{id}": "/models/model-11/requests/r-4711",
    "GET /models": "/models?limit=50",
    "GET /models/{model}/versions": "/models/model-3/versions",
    "GET /models/{model}/versions/{version}/lineage": "/models/model-3/versions/000003/lineage",
    "GET /policies": "/policies?limit=50",
    "GET /policies/{model}/explain": "/policies/model-3/explain?limit=50",
    "GET /folders": "/folders?limit=50",
    "GET /folders?since=": "/folders?since=2026-01-10&search=9&limit=50",
    "GET /folders/{folder}": "/folders/folder-77",
    "GET /dead-letters": "/dead-letters",
    "GET /audit": "/audit",
}


def fill(settings: Settings, statuses: int = STATUSES) -> None:
    """Publish final statuses of requests, versions of models, and folders of as many days and agents as may be."""
    with Publisher(settings.kafka) as publisher:
        template = FineTuneStatus(
            request_id="REQUEST",
            model="model-0",
            state=State.COMPLETED,
            at=_START,
            reasons=("better than the incumbent by 0.031",),
            promoted=True,
            log_uri="s3://foldtune/jobs/request/attempt-1.log",
            # Of a training of eight minutes.
            states=tuple(StateTime(state=state, at=_START) for state in ("accepted", "snapshotting", *_STATES)),
            loss_curve=tuple((10 * number, round(1.5 / (1 + number), 4)) for number in range(50)),
            validation_curve=(0.611, 0.642, 0.655),
        )
        for number in range(statuses):
            model, at = f"model-{number % MODELS}", _START + timedelta(seconds=number)
            status = template.model_copy(update={"request_id": f"r-{number}", "model": model, "at": at})
            key = request_key(model, f"r-{number}")
            publisher.send(Topic.FINE_TUNE_STATUS, status, key=key, partition_by=model)
            if number % _FLUSH == 0:
                publisher.flush()
        for number in range(VERSIONS):
            model = f"model-{number % MODELS}"
            publisher.send(Topic.MODEL_READY, model_ready(model=model, version=f"{number:06d}"), key=model)
        for number in range(MODELS):
            model = f"model-{number}"
            publisher.send(Topic.POLICIES, RetrainingPolicy(model=model, at=_START, rules=(Rule(),)), key=model)
            for change in range(_CHANGES):
                decided = _decided(model, _START + timedelta(hours=change))
                for key in (f"{model}/{change}", model):
                    publisher.send(Topic.POLICY_DECISIONS, decided, key=key, partition_by=model)
            publisher.flush()
        labels = {"cited": 70, "liked": 20, "disliked": 5, "corrected": 1}
        stats = FolderStats(
            folder_id="FOLDER",
            partition=0,
            at=_START,
            examples=91 * MAX_STATS_DAYS,
            documents=1_000,
            newest_log_at=_START,
            labels={label: count * MAX_STATS_DAYS for label, count in labels.items()},
            days=tuple(
                FolderDay(day=_START.date() + timedelta(days=day), logs=110, labels=labels, cited=90)
                for day in range(-MAX_STATS_DAYS, 0)
            ),
            agents=tuple(AgentCount(agent_id=f"agent-{number}", labels=labels) for number in range(MAX_STATS_AGENTS)),
        )
        for number in range(FOLDERS):
            folder = f"folder-{number}"
            publisher.send(Topic.FOLDER_STATS, stats.model_copy(update={"folder_id": folder}), key=folder)


def fill_training_sets(settings: Settings) -> None:
    """Publish logs that are examples, in envelopes, and the documents that they cite."""
    per_folder, documents = EXAMPLES // EXAMPLE_FOLDERS, 20
    words = [f"word{number}" for number in range(500)]
    draw = random.Random(0)  # noqa: S311
    with Publisher(settings.kafka) as publisher:
        for folder in (f"logs-{number}" for number in range(EXAMPLE_FOLDERS)):
            for number in range(documents):
                text = " ".join(draw.choices(words, k=120))
                document = DocumentUpserted(document_id=f"d{number}", folder_id=folder, occurred_at=now(), text=text)
                publisher.send(Topic.DOCUMENTS, document, key=folder)
            for first in range(0, per_folder, 500):
                logs = tuple(_log(folder, number, documents, draw, words) for number in range(first, first + 500))
                publisher.send(Topic.CHAT_LOGS, ChatLogBatch(folder_id=folder, logs=logs), key=folder)
            publisher.flush()


def _log(folder: str, number: int, documents: int, draw: random.Random, words: list[str]) -> ChatLog:
    shown = draw.sample(range(documents), 8)
    return ChatLog(
        log_id=f"l{number}",
        occurred_at=now(),
        agent_id=f"agent-{number % 7}",
        question=" ".join(draw.choices(words, k=12)) + "?",
        folder_id=folder,
        retrieved=tuple(
            RetrievedPassage(document_id=f"d{document}", folder_id=folder, rank=rank)
            for rank, document in enumerate(shown, start=1)
        ),
        cited_document_ids=(f"d{shown[0]}",),
    )


def previews(port: int, count: int = 5) -> dict[str, float]:
    """The seconds that previews of all examples take, once the worker has all of them."""
    body, deadline = json.dumps({"model": "model-3"}).encode(), time.monotonic() + READY_SECONDS
    took: list[float] = []
    while len(took) < count:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        started = time.monotonic()
        connection.request("POST", "/previews", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = json.load(answer)
        connection.close()
        if answer.status == 200 and found["complete"] and found["examples"] == EXAMPLES:
            assert len(found["questions"]) == 10
            took.append(time.monotonic() - started)
        elif time.monotonic() > deadline:
            raise RuntimeError(found)
        else:
            time.sleep(2)
    return {"preview_s": round(sorted(took)[count // 2], 2), "preview_max_s": round(max(took), 2)}


def _decided(model: str, at: datetime) -> PolicyDecided:
    text = "1,200 of 1,000 new labelled examples"
    condition = Condition(condition="new_examples", met=True, figure=1_200, bound=1_000, since=at, text=text)
    block = Block(block="cooldown", until=at, text="1h of 6h since request policy-0123456789abcdef0123")
    rules = (RuleFigures(rule="default", conditions=(condition,), blocks=(block,)),)
    return PolicyDecided(model=model, at=at, decision="blocked", since=at, rule="default", rules=rules, next_at=at)


@contextmanager
def running(environment: dict[str, str], port: int, log: Path, *options: str) -> Iterator[tuple[int, float]]:
    """The API's process id, and the seconds from its start until it was ready."""
    started = time.monotonic()
    with log.open("ab") as output:
        command = [sys.executable, "-m", "foldtune", "api", "--port", str(port), *options]
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() - started > READY_SECONDS:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.05)
        yield process.pid, time.monotonic() - started
    finally:
        process.terminate()
        process.wait(30)


def is_ready(port: int, paths: Iterable[str] = ("/ready",)) -> bool:
    """Whether each of the paths is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        return all(status_of(connection, path) == 200 for path in paths)
    except OSError:
        return False
    finally:
        connection.close()


def status_of(connection: http.client.HTTPConnection, path: str) -> int:
    """The status of an answer that is read to its end."""
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def call(port: int, calls: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Make calls when they are due; the route and the seconds that each took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    took = []
    for route, due in calls:
        time.sleep(max(0.0, due - time.monotonic()))
        status = status_of(connection, ROUTES[route])
        assert status == 200, (route, status)
        took.append((route, time.monotonic() - max(due, 0.0)))
    connection.close()
    return took


def latencies(port: int, seconds: int, threads: int = 8) -> dict[str, float]:
    """The 99th percentile by route, in milliseconds, at ``RATE`` calls a second."""
    began = time.monotonic() + 1
    calls = [(route, began + number / RATE) for number, route in enumerate(islice(cycle(ROUTES), RATE * seconds))]
    by_route = defaultdict(list)
    with ThreadPoolExecutor(threads) as pool:
        for took in pool.map(call, [port] * threads, [calls[first::threads] for first in range(threads)]):
            for route, spent in took:
                by_route[route].append(spent)
    return {route: round(1000 * quantiles(spent, n=100)[98], 1) for route, spent in sorted(by_route.items())}


def rss_mebibytes(pid: int) -> float:
    """What of a process is in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def main(
    seconds: Annotated[int, typer.Option(min=5, max=600, help="How long latency is measured.")] = 60,
    calls: Annotated[int, typer.Option(min=100, max=1_000_000, help="For the growth of memory.")] = 10_000,
) -> None:
    """Run all, and print one JSON object as the last line."""
    with tempfile.TemporaryDirectory() as folder, LocalServers(LocalOptions(data_dir=Path(folder))) as servers:
        kafka = {"bootstrap_servers": servers.bootstrap_servers}
        settings = Settings.model_validate({"kafka": kafka})
        create_topics(settings.kafka, tuple(Topic))
        fill(settings)
        environment = servers.environment | {"FOLDTUNE_API__REQUESTS_PER_MINUTE": "1000000"}
        port, log = free_port(), Path(folder) / "api.log"
        starts = []
        for _ in range(2):
            with running(environment, port, log) as (_, start):
                starts.append(start)
        with running(environment, port, log) as (pid, start):
            starts.append(start)
            # What is only asked for now and then is read after the start.
            deadline = time.monotonic() + READY_SECONDS
            while not is_ready(port, ROUTES.values()) and time.monotonic() < deadline:
                time.sleep(0.5)
            p99 = latencies(port, seconds)
            before = rss_mebibytes(pid)
            call(port, [(route, 0.0) for route in islice(cycle(ROUTES), calls)])
            after = rss_mebibytes(pid)
            fill_training_sets(settings)
            worker = ChildProcess(["worker"], environment | {"FOLDTUNE_WORKER__DATA_DIR": f"{folder}/worker"}, log)
            try:
                previewed = previews(port)
            finally:
                worker.stop()
    result = {
        "statuses": STATUSES,
        "versions": VERSIONS,
        "folders": FOLDERS,
        "restart_s": round(sorted(starts)[1], 2),
        "p99_ms": p99,
        **previewed,
        "rss_mib": round(after, 1),
        "rss_growth": round(after / before, 3),
        "calls": calls,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
