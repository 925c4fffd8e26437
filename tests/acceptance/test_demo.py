"""The demo with its own Kafka and S3 servers: its result, and the cleanup of processes and folders."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.console_journey import check_journey

SMALL = ("--folders", "1", "--documents", "600")
METRICS = {"recall@1", "recall@10", "mrr@10", "ndcg@10"}


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "demo", *options]


def environment(folder: Path) -> dict[str, str]:
    """The temporary folder also identifies every process that the demo starts."""
    return os.environ | {"TMPDIR": str(folder)}


def remaining_processes(folder: Path) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get("TMPDIR") == str(folder):
                processes.append(process)
    return processes


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo whose servers and processes are running."""
    with subprocess.Popen(
        command(*SMALL), env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        try:
            assert any(line.startswith("Embedding") for line in process.stdout)
            yield process
        finally:
            process.kill()


def test_from_logs_to_a_better_model_and_a_console_that_shows_it(tmp_path: Path) -> None:
    options = ("--folders", "1", "--documents", "600", "--questions", "580", "--held-out", "60", "--wrong-labels", "0")
    with subprocess.Popen(
        command(*options, "--keep"),
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        try:
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if address := re.search(r"(http://\S+)/console/", line):
                    break
            assert process.poll() is None, lines
            assert address, lines
            report = json.loads(next(line for line in lines if line.startswith("{")))
            check_console(f"{address[1]}/console/", report)
            check_journey(exported(lines), tmp_path, address[1])
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert report["model"] == "library-search"
    assert report["model_uri"].startswith("s3://foldtune/")
    assert report["before"].keys() == report["after"].keys() == METRICS
    assert report["after"]["ndcg@10"] > report["before"]["ndcg@10"]
    assert list(report["seconds"]) == [
        *("corpus", "start", "embed", "simulate", "publish", "train", "fetch", "evaluate", "total")
    ]
    assert remaining_processes(tmp_path) == []
    assert not list(tmp_path.glob("foldtune-demo-*"))


def exported(lines: list[str]) -> dict[str, str]:
    """What the demo prints for another terminal."""
    words = [shlex.split(line) for line in lines if line.startswith("export FOLDTUNE_")]
    return dict(word.split("=", 1) for _, word in words)


def check_console(address: str, report: dict[str, Any]) -> None:
    """What the demo did can be looked at: the job, its verdict, its questions, the folder and a next training."""
    pages = {
        "": [report["model"], "/console/fine-tune"],
        f"jobs/{report['model']}/{report['request_id']}": ["Better: nDCG@10", "Training loss", "Held-out questions"],
        f"models/{report['model']}/versions/{report['version']}/questions?order=gained": ["Rank of the first right"],
        "folders": ["/console/folders/"],
        f"fine-tune/preview?model={report['model']}": ["labelled examples", "negative, taken"],
        "policies": [report["model"]],
        "dead-letters": ["chat-logs"],
        "audit": ["policy.set", "erasure.ask"],
    }
    for page, expected in pages.items():
        with urllib.request.urlopen(f"{address}{page}", timeout=60) as answer:  # noqa: S310  this machine's own
            text = answer.read().decode()
        for words in expected:
            assert words in text, (page, text[-3000:])


@pytest.mark.matrix
# Three trainings: eight minutes on two idle cores.
@pytest.mark.timeout(2_400)
def test_the_policy_trains_round_after_round_and_when_quality_falls(tmp_path: Path) -> None:
    process = subprocess.run(
        command("--loop", "2"), env=environment(tmp_path), capture_output=True, text=True, check=False
    )

    assert process.returncode == 0, process.stdout + process.stderr
    events = json.loads(process.stdout.splitlines()[-1])["events"]
    # By their order; of one request, what is told of it.
    requests = [number for number, event in enumerate(events) if event["event"] == "requested"]
    assert [events[number]["by"] for number in requests] == [
        f"retraining policy, rule {rule}" for rule in ("growth", "growth", "quality")
    ]
    [fall] = (number for number, event in enumerate(events) if event["event"] == "index_broken")
    [*rounds, third] = requests
    assert rounds[-1] < fall < third
    deployed = [number for number, event in enumerate(events) if event["event"] == "deployed"]
    versions = [events[number]["version"] for number in deployed]
    for request, condition, end in zip(
        requests, ("new_examples", "new_examples", "quality"), (rounds[1], fall, None), strict=True
    ):
        of_request = [event for event in events[:end] if event.get("request_id") == events[request]["request_id"]]
        [decided] = (event for event in of_request if event["event"] == "decided")
        assert decided["decision"] == "requested"
        assert condition in decided["met"]
        states = [event for event in of_request if event["event"] == "status"]
        assert (states[0]["state"], states[-1]["state"]) == ("accepted", "completed")
        # The gate decides; what it promotes is announced, deployed, and what the next training starts from.
        announced = [event for event in of_request if event["event"] == "model_ready"]
        assert len(announced) == states[-1]["promoted"]
        for ready in announced:
            position = versions.index(ready["version"])
            assert deployed[position] > events.index(ready)
            assert ready["parent_version"] == (versions[position - 1] if position > 1 else None)
    assert len(versions) == 1 + sum(event["event"] == "model_ready" for event in events) > 1
    assert remaining_processes(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.matrix)]
)
def test_every_process_exits_with_the_demo(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with running(tmp_path) as process:
        assert len(remaining_processes(tmp_path)) > 5
        process.send_signal(number)
        assert process.wait(60) == status

    deadline = time.monotonic() + 60
    while remaining_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert remaining_processes(tmp_path) == []
    assert number == signal.SIGKILL or not list(tmp_path.glob("foldtune-demo-*"))
