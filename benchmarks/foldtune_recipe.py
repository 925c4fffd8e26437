"""foldtune's recipe on benchmark data, without object store and events."""

from dataclasses import replace
from typing import Any

import numpy as np

from foldtune.events import FineTuneRequested, Progress, now
from foldtune.knobs import DatasetKnobs, TrainingKnobs, WeightKnobs
from trainers.data.dataset import Dataset, Split, split


class SilentListener:
    """Ignores progress events."""

    def on_step(self, _: Progress) -> None:
        pass


def create_request(seed: int, knobs: dict[str, dict[str, Any]]) -> FineTuneRequested:
    """A request with ``knobs``, by group and name, and the defaults of all others."""
    return FineTuneRequested(
        request_id="benchmark",
        model="benchmark",
        requested_at=now(),
        seed=seed,
        dataset=DatasetKnobs(**knobs.get("dataset", {})),
        training=TrainingKnobs(**knobs.get("training", {})),
        weights=WeightKnobs(**knobs.get("weights", {})),
    )


def split_without_held_out(dataset: Dataset) -> Split:
    """foldtune's split, with the held-out questions moved to the training set: benchmarks evaluate on split ``dev``."""
    parts = split(dataset)
    validation_groups = dataset.groups[parts.validation]
    rows = np.flatnonzero(~np.isin(dataset.groups[dataset.question], validation_groups))
    return replace(parts, train=rows, held_out=np.empty(0, dtype=np.int64))
