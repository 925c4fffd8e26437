import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from safetensors.torch import load_file

from foldtune.events import TrainingJob
from foldtune.testing import MemoryObjectStore
from infra.local.ports import free_port
from tests.jobs import RecordingEventSink, published_prefix
from tests.unit.trainers.job_of_ranks import job_in, losses, settings_for
from trainers.engine import ranks
from trainers.exit_codes import ExitCode
from trainers.job import main, run

ROOT = Path(__file__).parents[3]
# Each rank has one thread, as torchrun would have it; the sums of a product then run in another order.
ENVIRONMENT = os.environ | {
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "CUDA_VISIBLE_DEVICES": "",
}


def torchrun(model: Path, output: Path, *options: str, processes: int = 2) -> int:
    """Runs ``job_of_ranks`` on a free port of this machine; the exit code."""
    output.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "trainers.torchrun", f"--nproc-per-node={processes}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    command += ["-m", "tests.unit.trainers.job_of_ranks", str(model), str(output), *options]
    return subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, timeout=240, check=False).returncode


def stored_in(output: Path) -> MemoryObjectStore:
    """What rank 0 left in its store."""
    store, stored = MemoryObjectStore(), output / "store"
    for path in stored.rglob("*"):
        if path.is_file():
            store.put_file(path.relative_to(stored).as_posix(), path)
    return store


@pytest.fixture
def alone(tiny_folder: Path, tmp_path: Path, full_precision: None) -> MemoryObjectStore:
    """What the same training leaves that one process does."""
    store = MemoryObjectStore()
    code = run(job_in(store, tiny_folder), settings_for(tiny_folder, tmp_path), store, RecordingEventSink())
    assert code == ExitCode.DONE
    return store


@pytest.fixture
def logs_restored() -> Iterator[None]:
    """A trainer configures the logs of its process, here that of the tests."""
    yield
    structlog.reset_defaults()


def assert_near(path: Path, other: MemoryObjectStore, tmp_path: Path) -> None:
    """Equal but for the order of float32 sums."""
    other.get_file(f"{published_prefix(other)}/model.safetensors", tmp_path / "other.safetensors")
    one, two = load_file(path), load_file(tmp_path / "other.safetensors")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # It adds the same to all of a query's logits, so its gradient is nothing but rounding, which Adam scales up.
        if name.endswith("key.bias"):
            continue
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=1e-5, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.matrix)])
def test_ranks_train_the_weights_of_one_process(
    processes: int, alone: MemoryObjectStore, tiny_folder: Path, tmp_path: Path
) -> None:
    assert torchrun(tiny_folder, tmp_path / "ranks", processes=processes) == ExitCode.DONE
    ours, expected = stored_in(tmp_path / "ranks"), losses(alone)
    assert len(expected) > 10
    assert losses(ours) == pytest.approx(expected, abs=1e-5)
    ours.get_file(f"{published_prefix(ours)}/model.safetensors", tmp_path / "ours.safetensors")
    assert_near(tmp_path / "ours.safetensors", alone, tmp_path)
    names = [{key.rpartition(published_prefix(store))[2] for key in store.list("models/")} for store in (ours, alone)]
    assert names[0] == names[1]


def test_one_process_resumes_from_the_checkpoint_of_interrupted_ranks(
    alone: MemoryObjectStore, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torchrun(tiny_folder, tmp_path / "ranks", "7") == ExitCode.TRY_AGAIN
    store = stored_in(tmp_path / "ranks")
    # The same job, not one made anew: another snapshot would be another training.
    job = TrainingJob.model_validate_json(store.get("job.json"))
    assert store.list("checkpoints/")
    monkeypatch.setattr("trainers.publishing.reporting.REPORT_SECONDS", -1)
    again = RecordingEventSink()
    assert run(job, settings_for(tiny_folder, tmp_path), store, again) == ExitCode.DONE
    steps = [status.progress.step for status in again.statuses if status.progress]
    assert steps == list(range(8, len(losses(alone)) + 1))
    store.get_file(f"{published_prefix(store)}/model.safetensors", tmp_path / "again.safetensors")
    assert_near(tmp_path / "again.safetensors", alone, tmp_path)


@pytest.mark.matrix
def test_a_refusal_of_rank_0_is_not_retried(tiny_folder: Path, tmp_path: Path, capfd: Any) -> None:
    assert torchrun(tiny_folder, tmp_path / "ranks", "0", "99") == ExitCode.IMPOSSIBLE
    assert "training.trainable_layers is 99" in capfd.readouterr().err


@pytest.mark.matrix
def test_a_failure_before_rank_0_reports_is_retried(tmp_path: Path) -> None:
    assert torchrun(tmp_path / "no-model", tmp_path / "ranks", "no-number") == ExitCode.TRY_AGAIN


@pytest.mark.usefixtures("logs_restored")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "two"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"),
    ],
)
def test_inconsistent_rank_variables_are_reported(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["s3://memory/job.json"]) == ExitCode.TRY_AGAIN
    assert message in json.loads(capsys.readouterr().err)["error"]
    assert (ranks.rank(), ranks.world_size()) == (0, 1)


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.matrix), 1])
def test_a_lost_rank_terminates_the_other(lost: int, tiny_folder: Path, tmp_path: Path) -> None:
    port = str(free_port())
    started = []
    for rank in range(2):
        environment = ENVIRONMENT | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": port, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "tests.unit.trainers.job_of_ranks", str(tiny_folder), str(tmp_path)]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    try:
        assert started[0].stderr
        assert any('"training step"' in line and json.loads(line)["request_id"] == "r" for line in started[0].stderr)
        started[lost].kill()
        rest = started[1 - lost].communicate(timeout=120)[1]
        assert started[1 - lost].returncode == ExitCode.TRY_AGAIN
        assert "Another rank of this training ended" in rest
        event = {0: "worker rank failed", 1: "training failed"}[lost]
        assert event in {json.loads(line)["event"] for line in rest.splitlines() if line.startswith("{")}
    finally:
        for process in started:
            process.kill()
            process.communicate()
