"""Batches of texts."""

import numpy as np

from trainers.model.tokens import length_sorted_batches


def test_length_sorted_batches_respect_the_budget_and_hold_every_text() -> None:
    lengths = np.array([3, 50, 7, 8, 8, 1, 120])
    batches = list(length_sorted_batches(lengths, 60))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= 60 for batch in batches)
