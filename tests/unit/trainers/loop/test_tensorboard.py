import json
import sys
from pathlib import Path
from typing import Any

import pytest

from foldtune.settings import Settings, TrainerSettings
from foldtune.testing import MemoryObjectStore
from tests.jobs import RecordingEventSink, artifact
from tests.unit.trainers.job_of_ranks import job_in
from trainers.exit_codes import ExitCode
from trainers.job import run
from trainers.loop.optimizer import UNVALIDATED_LEARNING_RATE
from trainers.loop.tensorboard import TensorBoardLogger


@pytest.mark.slow
def test_every_step_can_be_read_back(tiny_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = MemoryObjectStore()
    trainer = TrainerSettings(model_folders=(tiny_folder,), work_dir=tmp_path, tensorboard_dir=tmp_path / "curves")
    assert run(job_in(store, tiny_folder), Settings(trainer=trainer), store, RecordingEventSink()) == ExitCode.DONE
    (file,) = (tmp_path / "curves").glob("*/000001/events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    record = json.loads(artifact(store, "metrics.json"))["training"]
    curves = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert curves.keys() == {"loss", "mean_positive_probability", "learning_rate", "examples_per_second"}
    assert curves["loss"] == pytest.approx(record["losses"])
    assert curves["mean_positive_probability"] == pytest.approx(record["probabilities"])
    # 24 steps: two up, twenty-two down.
    scales = [0.5, 1.0, *(left / 22 for left in range(22, 0, -1))]
    assert curves["learning_rate"] == pytest.approx([UNVALIDATED_LEARNING_RATE * scale for scale in scales], rel=1e-5)
    assert min(curves["examples_per_second"]) > 0
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 25))


@pytest.mark.parametrize("missing", [True, False])
def test_a_failing_tensorboard_log_is_a_warning(
    missing: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, warnings = tmp_path / "curves", list[str]()
    if missing:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    else:
        folder.write_text("a file")
    board: Any = TensorBoardLogger(folder, job_in(MemoryObjectStore(), tiny_folder), warnings.append)
    board.log_step(1, loss=1.0)
    board.close()
    (warning,) = warnings
    assert warning.startswith("trainer.tensorboard_dir: ")
    assert ("extra 'tensorboard'" if missing else str(folder)) in warning
