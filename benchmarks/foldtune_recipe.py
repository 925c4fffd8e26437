"""What foldtune does with a request, on a benchmark's data: its own pipeline, without store and events."""

from dataclasses import replace
from typing import Any

import numpy as np

from foldtune.events import FineTuneRequested, Progress, now
from foldtune.knobs import DatasetKnobs, TrainingKnobs, WeightKnobs
from trainers.data.dataset import Dataset, Split, split


class Silent:
    """An observer for whom nobody looks on."""

    def stepped(self, _: Progress) -> None:
        """Say nothing."""


def request_of(seed: int, knobs: dict[str, dict[str, Any]]) -> FineTuneRequested:
    """A request with the defaults, but for ``knobs`` by group and name."""
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
    """foldtune's split, but what it would hold out to report on is trained on: that is what ``dev`` is for."""
    parts = split(dataset, seed)
    kept_back = dataset.groups[parts.validation]
    rows = np.flatnonzero(~np.isin(dataset.groups[dataset.question], kept_back))
    return replace(parts, train=rows, held_out=np.empty(0, dtype=np.int64))
