"""Exact search."""

import torch

from trainers.data.search import nearest


def test_the_cutoff_may_exceed_the_number_of_passages() -> None:
    assert nearest(torch.eye(2), torch.eye(2), 3).tolist() == [[0, 1, -1], [1, 0, -1]]
