"""The demo with its own Kafka and S3 servers: its result, and the cleanup of processes and folders."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

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


def test_from_logs_to_a_better_model(tmp_path: Path) -> None:
    process = subprocess.run(
        command(
            "--folders", "1", "--documents", "600", "--questions", "580", "--held-out", "60", "--wrong-labels", "0"
        ),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stdout + process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["model"] == "library-search"
    assert report["model_uri"].startswith("s3://foldtune/")
    assert report["before"].keys() == report["after"].keys() == METRICS
    assert report["after"]["ndcg@10"] > report["before"]["ndcg@10"]
    assert list(report["seconds"]) == [
        *("corpus", "start", "embed", "simulate", "publish", "train", "fetch", "evaluate", "total")
    ]
    assert remaining_processes(tmp_path) == []
    assert not list(tmp_path.glob("foldtune-demo-*"))


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
