"""Logs a training's metrics to TensorBoard while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foldtune.events import TrainingJob
from foldtune.object_keys import request_segment


class TensorBoardLogger:
    """Writes the scalars of ``job`` to its own folder below ``folder``; a no-op without a folder.

    A failure is reported once through ``warn`` and does not end the training. A job that resumes from a checkpoint
    continues in the same folder.
    """

    def __init__(self, folder: Path | None, job: TrainingJob, warn: Callable[[str], object]) -> None:
        self._warn = warn
        self._writer: Any = None
        if folder is not None:
            with self._failures_as_warnings():
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional extra

                name = request_segment(job.request.model, job.request.request_id)
                self._writer = SummaryWriter(folder / name / job.version)

    def log_step(self, step: int, **scalars: float) -> None:
        """Write the scalars of a step."""
        if self._writer is not None:
            with self._failures_as_warnings():
                for name, value in scalars.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            with self._failures_as_warnings():
                self._writer.close()

    @contextmanager
    def _failures_as_warnings(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            self._warn(f"trainer.tensorboard_dir: the extra 'tensorboard' is not installed ({error})")
        except OSError as error:
            self._writer = None
            self._warn(f"trainer.tensorboard_dir: {error}")
