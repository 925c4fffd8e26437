"""A job, and a launcher that runs a small program in the trainer's place."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from foldtune.events import FineTuneRequested, ModelReference, TrainingJob, now
from foldtune.settings import Settings, TrainerSettings
from foldtune.testing import MemoryObjectStore
from launchers.local.launcher import LocalLauncher

MOMENT = now()
MakeLocal = Callable[..., LocalLauncher]


@pytest.fixture
def job() -> TrainingJob:
    """A job of one request."""
    return make_job("r-1")


def make_job(request_id: str, *, max_seconds: int = 60) -> TrainingJob:
    """A job that no trainer will ever read."""
    return TrainingJob(
        request=FineTuneRequested(request_id=request_id, model="support", requested_at=MOMENT),
        base_model=ModelReference(uri="hf://org/model"),
        snapshot_uri="s3://memory/snapshots/r-1/manifest.json",
        snapshot_sha256="0" * 64,
        output_uri="s3://memory/models/r-1",
        version="20250102T000000Z",
        published_at=MOMENT,
        max_seconds=max_seconds,
    )


@pytest.fixture
def store() -> MemoryObjectStore:
    """An empty store."""
    return MemoryObjectStore()


@pytest.fixture
def make_local(tmp_path: Path, store: MemoryObjectStore) -> MakeLocal:
    """Makes launchers whose trainer is a Python program, with the job's URI as ``sys.argv[1]``."""

    def make(program: str, *, grace_seconds: float = 10) -> LocalLauncher:
        settings = Settings(trainer=TrainerSettings(work_dir=tmp_path))
        return LocalLauncher(settings, store, command=(sys.executable, "-c", program), grace_seconds=grace_seconds)

    return make
