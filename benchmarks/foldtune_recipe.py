"""foldtune's own pipeline on a benchmark's data, without object store and events."""

from dataclasses import replace
from typing import Any

import numpy as np

from foldtune.events import FineTuneRequested, Progress, now
from foldtune.knobs import DatasetKnobs, TrainingKnobs, WeightKnobs
from trainers.data.dataset import Dataset, Split, split


class SilentListener:
    """Ignores the progress."""

    def on_step(self, _: Progress) -> None:
        pass


def request_of(seed: int, knobs: dict[str, dict[str, Any]]) -> FineTuneRequested:
    """A request with ``knobs`` by group and name, and defaults for all others."""
    return FineTuneRequested(
        request_id="benchmark",
        model="benchmark",
        requested_at=now(),
        seed=seed,
        dataset=DatasetKnobs(**knobs.get("dataset", {})),
        training=TrainingKnobs(**knobs.get("training", {})),
        weights=WeightKnobs(**knobs.get("weights", {})),
    )


def parts_of(dataset: Dataset, seed: int) -> Split:
    """foldtune's split, but with the held-out questions in the training set: benchmarks evaluate on ``dev``."""
    parts = split(dataset, seed)
    validation_groups = dataset.groups[parts.validation]
    rows = np.flatnonzero(~np.isin(dataset.groups[dataset.question], validation_groups))
    return replace(parts, train=rows, held_out=np.empty(0, dtype=np.int64))
