"""The small things to train with, for tests that start processes or take their time."""

from tests.unit.trainers.conftest import (
    full_precision,
    no_gpu_unless_marked,
    small_dataset,
    tables,
    tiny_folder,
)

__all__ = ["full_precision", "no_gpu_unless_marked", "small_dataset", "tables", "tiny_folder"]
