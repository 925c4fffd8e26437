"""A checkpoint that cannot be written costs no training, and holds up no end."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from foldtune.errors import ObjectStoreError, ObjectStoreRefusedError
from foldtune.testing import MemoryObjectStore
from tests.jobs import put_job
from tests.unit.trainers.conftest import example, make_tables
from trainers.errors import InterruptedTrainingError
from trainers.loop import checkpoints as module
from trainers.loop.checkpoints import Checkpoints, TrainingState


class Store(MemoryObjectStore):
    """Fails or hangs while it uploads files."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], object] = lambda: None

    def put_file(self, key: str, path: Path) -> None:
        self.before()
        super().put_file(key, path)


def fail() -> None:
    raise ObjectStoreError("s3://memory/checkpoints", "SlowDown")


@pytest.fixture
def hangs() -> Iterator[threading.Event]:
    """Until it is set."""
    event = threading.Event()
    yield event
    event.set()


def state(number: int) -> TrainingState:
    return TrainingState({"order": torch.tensor([number])}, {})


def of(store: MemoryObjectStore, warnings: list[str]) -> Checkpoints:
    job = put_job(store, make_tables([example("where is it?", "d")], {"d": "here"}))
    return Checkpoints(job, store, timedelta(hours=1), warnings.append)


def test_a_checkpoint_that_is_not_written_is_one_warning_and_the_next_one_is_tried() -> None:
    store, warnings = Store(), list[str]()
    checkpoints = of(store, warnings)
    store.before = fail
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    assert [("SlowDown" in warning, "could not be written" in warning) for warning in warnings] == [(True, True)]
    assert not checkpoints.due
    store.before = lambda: None
    checkpoints.save(state(3))
    found = checkpoints.load()
    assert found is not None
    assert found.tensors["order"].item() == 3


def test_an_upload_that_hangs_is_left_behind_and_none_overtakes_it(
    monkeypatch: pytest.MonkeyPatch, hangs: threading.Event
) -> None:
    monkeypatch.setattr(module, "UPLOAD_SECONDS", 0.05)
    store, warnings = Store(), list[str]()
    checkpoints = of(store, warnings)
    store.before = hangs.wait
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    assert len(warnings) == 1
    assert not store.list("checkpoints/")
    hangs.set()
    deadline = time.monotonic() + 10
    while not store.list("checkpoints/") and time.monotonic() < deadline:
        time.sleep(0.01)
    found = checkpoints.load()
    assert found is not None
    assert found.tensors["order"].item() == 1


@pytest.mark.parametrize("when", ["before the upload", "during the upload"])
def test_sigterm_bounds_the_wait_for_a_store_that_hangs(
    when: str, monkeypatch: pytest.MonkeyPatch, hangs: threading.Event
) -> None:
    monkeypatch.setattr(module, "SIGTERM_UPLOAD_SECONDS", 0.05)
    store, warnings = Store(), list[str]()
    checkpoints = of(store, warnings)

    def hang() -> None:
        if when == "during the upload":
            os.kill(os.getpid(), signal.SIGTERM)
        hangs.wait()

    def train() -> None:
        with checkpoints.sigterm_deferred():
            if when == "before the upload":
                os.kill(os.getpid(), signal.SIGTERM)
            checkpoints.save(state(1))

    store.before = hang
    with pytest.raises(InterruptedTrainingError):
        train()
    assert "took longer than" in warnings[0]


def test_sigterm_after_the_last_checkpoint_is_not_forgotten() -> None:
    checkpoints = of(Store(), [])

    def train() -> None:
        with checkpoints.sigterm_deferred():
            checkpoints.save(state(1))
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedTrainingError):
        train()


def test_a_checkpoint_that_may_not_be_read_is_ignored() -> None:
    class Closed(MemoryObjectStore):
        def get_file(self, key: str, path: Path) -> None:
            raise ObjectStoreRefusedError(self.uri(key), "AccessDenied", path.name)

    assert of(Closed(), []).load() is None


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", no_space)
    warnings = list[str]()
    of(Store(), warnings).save(state(1))
    assert "No space left" in warnings[0]
