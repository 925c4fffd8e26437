"""What a training has done for each folder: means before and after, and how sure the gain is."""

from collections import defaultdict
from typing import Any

import numpy as np

from trainers.data.dataset import Dataset
from trainers.evaluation.gate import gain_interval
from trainers.evaluation.metrics import MIN_FOLDER_QUESTIONS, Evaluation
from trainers.model.tokens import Indices


def metrics_by_folder(
    dataset: Dataset, held_out: Indices, before: Evaluation, after: Evaluation, seed: int
) -> dict[str, dict[str, Any]]:
    """Mean metrics of each folder with enough held-out questions, with the 95% interval of its nDCG gain.

    A question counts in every folder it was asked in.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, question in enumerate(held_out):
        for folder in dataset.folders[question]:
            rows_of[folder].append(row)

    def figures(rows: list[int]) -> dict[str, Any]:
        first, second = (evaluation.subset(np.array(rows)) for evaluation in (before, after))
        means = [each.metrics().model_dump(exclude={"questions", "documents"}) for each in (first, second)]
        interval = list(gain_interval(first, second, seed))
        return {"questions": len(rows), "before": means[0], "after": means[1], "ndcg_gain_interval": interval}

    return {folder: figures(rows) for folder, rows in sorted(rows_of.items()) if len(rows) >= MIN_FOLDER_QUESTIONS}
