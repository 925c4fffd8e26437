"""Retrieval metrics by hand, and against scikit-learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from trainers.data.dataset import Dataset
from trainers.evaluation.metrics import evaluate, ndcg, recall, reciprocal_rank


def test_hand_computed_metrics() -> None:
    hits = np.array([[True, False, True], [False, True, False], [False, False, False]])
    assert reciprocal_rank(hits).tolist() == [1.0, 0.5, 0.0]
    assert recall(hits, np.array([2, 1, 1]), 2).tolist() == [0.5, 1.0, 0.0]
    second = 1 / math.log2(3)
    expected = [(1 + 0.5) / (1 + second), second, 0.0]
    assert ndcg(hits, np.array([2, 1, 1])).tolist() == pytest.approx(expected)


def test_metrics_equal_scikit_learn() -> None:
    from sklearn.metrics import ndcg_score

    generator = np.random.default_rng(4)
    scores, relevance = generator.random((30, 25)), generator.random((30, 25)) < 0.2
    relevance[:, 0] = True
    order = np.argsort(-scores, axis=1)[:, :10]
    ours = ndcg(np.take_along_axis(relevance, order, axis=1), relevance.sum(axis=1))
    assert ours.mean() == pytest.approx(ndcg_score(relevance, scores, k=10))


def test_all_positives_of_a_question_count(small_dataset: Dataset) -> None:
    passages = torch.eye(len(small_dataset.passages))
    queries = passages[:40].clone()
    queries[1] = passages[49] - passages[1]
    result = evaluate(small_dataset, np.arange(40), queries, passages)
    metrics = result.metrics()
    assert metrics.recall_at_1 == pytest.approx(39 / 40)
    assert metrics.documents == 50
    assert result.recall_curve() == [pytest.approx(39 / 40)] * 10


def test_the_recall_curve_counts_the_first_k(small_dataset: Dataset) -> None:
    passages = torch.eye(len(small_dataset.passages))
    # The own passage of question n comes at rank n + 1.
    queries = passages[:4] + 2 * torch.stack([passages[40 : 40 + rank].sum(dim=0) for rank in range(4)])
    curve = evaluate(small_dataset, np.arange(4), queries, passages).recall_curve()
    assert curve == [0.25, 0.5, 0.75] + [1.0] * 7


def test_what_a_reranker_sees_is_counted_too(small_dataset: Dataset) -> None:
    dataset = replace(small_dataset, passages=small_dataset.passages[:50] + ("more",) * 70, searchable=120)
    dataset = replace(dataset, known_positives=np.arange(4) * 120 + np.arange(4))
    passages = torch.eye(120)
    # The own passage of each question comes at these ranks.
    queries = passages[:4] + 2 * torch.stack([passages[120 - rank + 1 :].sum(dim=0) for rank in (10, 11, 51, 101)])
    result = evaluate(dataset, np.arange(4), queries, passages)
    metrics = result.metrics()
    assert (metrics.recall_at_10, metrics.recall_at_50, metrics.recall_at_100) == (0.25, 0.5, 0.75)
    assert result.ndcg.tolist() == pytest.approx([1 / math.log2(11), 0, 0, 0])
    assert len(result.recall_curve()) == 10
