"""The metrics of each folder."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.trainers.evaluation.conftest import evaluation
from trainers.data.dataset import Dataset
from trainers.evaluation.by_folder import metrics_by_folder
from trainers.evaluation.gate import gain_interval


def test_folders_are_evaluated_separately(small_dataset: Dataset) -> None:
    # Folder a has the questions up to 7, b those from 4 to 11, and the others are alone in theirs.
    folders = tuple((*"a" * (q < 8), *"b" * (4 <= q < 12)) if q < 12 else (f"../{q}",) for q in range(40))
    dataset = replace(small_dataset, folders=folders)
    held_out = np.arange(2, 20)
    before, after = evaluation([0.2] * 18), evaluation([0.3] * 2 + [0.6] * 4 + [0.9] * 12)
    by_folder = metrics_by_folder(dataset, held_out, before, after, seed=7)
    assert list(by_folder) == ["a", "b"]
    assert (by_folder["a"]["questions"], by_folder["b"]["questions"]) == (6, 8)
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50", "recall_at_100", "mrr_at_10", "ndcg_at_10")
    assert by_folder["a"]["before"] == pytest.approx(dict.fromkeys(names, 0.2))
    assert by_folder["a"]["after"] == pytest.approx(dict.fromkeys(names, 0.5))
    assert by_folder["b"]["after"]["ndcg_at_10"] == pytest.approx((4 * 0.6 + 4 * 0.9) / 8)
    # Of this folder alone.
    assert by_folder["a"]["ndcg_gain_interval"] == list(
        gain_interval(evaluation([0.2] * 6), after.subset(np.arange(6)), 7)
    )
    few = evaluation([0.2] * 4)
    assert metrics_by_folder(dataset, np.arange(4), few, few, seed=7) == {}
