"""A training's curves for TensorBoard, while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foldtune.events import TrainingJob
from foldtune.object_keys import request_segment


class TensorBoardLogger:
    """The curves of ``job`` in a folder of its own below ``folder``; without one, nothing.

    What stands in their way is warned of once, and ends no training. A job that goes on from a checkpoint writes on in
    the same folder.
    """

    def __init__(self, folder: Path | None, job: TrainingJob, warn: Callable[[str], object]) -> None:
        self._warn = warn
        self._writer: Any = None
        if folder is not None:
            with self._harmless():
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra of its own

                name = request_segment(job.request.model, job.request.request_id)
                self._writer = SummaryWriter(folder / name / job.version)

    def stepped(self, step: int, **figures: float) -> None:
        """Write the figures of a step."""
        if self._writer is not None:
            with self._harmless():
                for name, value in figures.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """All that was written can be read."""
        if self._writer is not None:
            with self._harmless():
                self._writer.close()

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            self._warn(f"trainer.tensorboard_dir: the extra 'tensorboard' is not installed ({error})")
        except OSError as error:
            self._writer = None
            self._warn(f"trainer.tensorboard_dir: {error}")
