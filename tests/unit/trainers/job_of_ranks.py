"""One rank of a training of ``test_ranks.py``: ``job_of_ranks MODEL_FOLDER OUTPUT_FOLDER [STEP [LAYERS]]``.

With ``STEP``, all ranks are asked to end after that step; ``LAYERS`` may be more than there are. Rank 0 leaves what was
stored in ``OUTPUT_FOLDER``.
"""

import json
import os
import signal
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Literal

import psutil
import pytest
import torch

from foldtune.events import FineTuneStatus, ModelReference, TrainingJob
from foldtune.knobs import TrainingKnobs
from foldtune.settings import Settings, TrainerSettings
from foldtune.testing import MemoryObjectStore
from tests.jobs import RecordingEventSink, artifact, put_job
from tests.unit.trainers.conftest import make_tables, use_compute_dtype
from tests.unit.trainers.test_job import DOCUMENTS, EXAMPLES
from trainers import job
from trainers.engine import ranks


def losses(store: MemoryObjectStore) -> list[float]:
    """The loss of every step of the model that was published."""
    found: list[float] = json.loads(artifact(store, "training.json"))["loss"]
    return found


def job_in(store: MemoryObjectStore, model: Path, layers: int | Literal["all"] = 2) -> TrainingJob:
    """Four epochs, of two layers; the last batch of each is small, so that some rank may have little or nothing."""
    knobs = TrainingKnobs(batch_size=13, epochs=4, trainable_layers=layers)
    base = ModelReference(uri=model.as_uri())
    return put_job(store, make_tables(EXAMPLES, DOCUMENTS), base_model=base, training=knobs)


def settings_for(model: Path, folder: Path) -> Settings:
    """No checkpoint but the one that is asked for."""
    return Settings(
        trainer=TrainerSettings(model_folders=(model,), work_dir=folder, checkpoint_interval=timedelta(hours=1))
    )


class AskedToEnd(RecordingEventSink):
    """After ``step`` steps every process that torchrun has started is asked to end, as torchrun itself would do it."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def publish_status(self, status: FineTuneStatus) -> None:
        super().publish_status(status)
        if status.progress and status.progress.step == self._step:
            others = psutil.Process(os.getppid()).children() if ranks.world_size() > 1 else []
            for other in others:
                if other.pid != os.getpid():
                    other.send_signal(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


def main(model: Path, output: Path, step: int = 0, layers: int = 2) -> int:
    """Run ``trainers.job`` with an object store and an sink in memory; the store is rank 0's alone."""
    store = MemoryObjectStore()

    def only_for_the_first(_: object) -> MemoryObjectStore:
        assert ranks.rank() == 0
        store.put("job.json", job_in(store, model, layers).model_dump_json().encode())
        return store

    with pytest.MonkeyPatch.context() as patch:
        use_compute_dtype(patch, torch.float32)
        patch.setattr("trainers.publishing.reporting.REPORT_SECONDS", -1)
        patch.setattr(job, "load_settings", lambda: settings_for(model, output))
        patch.setattr(job, "S3ObjectStore", only_for_the_first)
        patch.setattr(job, "KafkaEventSink", lambda _: nullcontext(AskedToEnd(step)))
        code = job.main([store.uri("job.json")])
    for key in store.list(""):
        path = output / "store" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(key))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])))
