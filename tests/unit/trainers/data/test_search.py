"""Exact search."""

import torch

from trainers.data.search import nearest


def test_fewer_passages_than_the_cutoff() -> None:
    assert nearest(torch.eye(2), torch.eye(2), 3).tolist() == [[0, 1, -1], [1, 0, -1]]
