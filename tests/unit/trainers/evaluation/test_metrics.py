import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from trainers.data.dataset import Dataset
from trainers.evaluation.metrics import (
    Evaluation,
    by_folder,
    evaluate,
    gain_interval,
    gate,
    ndcg,
    nearest,
    reciprocal_rank,
)


def evaluation(scores: list[float], groups: list[int] | None = None) -> Evaluation:
    values = np.array(scores)
    labels = np.arange(len(values)) if groups is None else np.array(groups)
    return Evaluation(dict.fromkeys(range(1, 11), values), values, values, labels, documents=9)


def test_hand_computed_measures() -> None:
    hits = np.array([[True, False, True], [False, True, False], [False, False, False]])
    assert reciprocal_rank(hits).tolist() == [1.0, 0.5, 0.0]
    second = 1 / math.log2(3)
    expected = [(1 + 0.5) / (1 + second), second, 0.0]
    assert ndcg(hits, np.array([2, 1, 1])).tolist() == pytest.approx(expected)


def test_agrees_with_scikit_learn() -> None:
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
    queries[1] = passages[49]
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


def test_folders_are_measured_apart(small_dataset: Dataset) -> None:
    # Folder a has the questions up to 7, b those from 4 to 11, and the others are alone in theirs.
    folders = tuple((*"a" * (q < 8), *"b" * (4 <= q < 12)) if q < 12 else (f"../{q}",) for q in range(40))
    dataset = replace(small_dataset, folders=folders)
    held_out = np.arange(2, 20)
    before, after = evaluation([0.2] * 18), evaluation([0.3] * 2 + [0.6] * 4 + [0.9] * 12)
    found = by_folder(dataset, held_out, before, after)
    assert list(found) == ["a", "b"]
    assert (found["a"]["questions"], found["b"]["questions"]) == (6, 8)
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr_at_10", "ndcg_at_10")
    assert found["a"]["before"] == pytest.approx(dict.fromkeys(names, 0.2))
    assert found["a"]["after"] == pytest.approx(dict.fromkeys(names, 0.5))
    assert found["b"]["after"]["ndcg_at_10"] == pytest.approx((4 * 0.6 + 4 * 0.9) / 8)
    few = evaluation([0.2] * 4)
    assert by_folder(dataset, np.arange(4), few, few) == {}


def test_fewer_passages_than_the_cutoff() -> None:
    assert nearest(torch.eye(2), torch.eye(2), 3).tolist() == [[0, 1, -1], [1, 0, -1]]


def test_the_gate_says_why() -> None:
    low, high = evaluation([0.2, 0.3] * 20), evaluation([0.6, 0.5] * 20)
    better, worse, few = gate(low, high, 0), gate(high, low, 0), gate(evaluation([0.1]), evaluation([0.9]), 0)
    assert better.promote
    assert better.ndcg_gain == pytest.approx(0.3)
    assert better.ndcg_gain_interval[0] > 0.2
    assert not worse.promote
    assert "not better than the base model" in worse.reasons[0]
    assert not few.promote
    assert "too few" in few.reasons[0]
    refused = gate(low, high, 0, refusals=["it forgot how to read"])
    assert not refused.promote
    assert refused.reasons == ("it forgot how to read",)
    same = gate(low, low, 0)
    assert not same.promote


@pytest.mark.parametrize(("gain", "promoted"), [(0.004, False), (0.012, True)])
def test_a_small_gain_must_be_sure_and_a_larger_one_may_be_off_by_the_tolerance(gain: float, promoted: bool) -> None:
    spread = np.tile([0.05, -0.05], 100)
    before = evaluation([0.5] * 200)
    verdict = gate(before, evaluation((0.5 + gain + spread * (1 if gain < 0.01 else 2.5)).tolist()), 0)
    assert -0.01 < verdict.ndcg_gain_interval[0] < 0
    assert verdict.promote == promoted


def test_a_gain_that_may_be_chance_is_not_promoted() -> None:
    before = evaluation([0.5] * 40)
    after = evaluation([1.0, 0.0] * 20 + [])
    after.ndcg[:2] = 1.0
    verdict = gate(before, after, 0)
    assert verdict.ndcg_gain > 0
    assert not verdict.promote
    assert "chance" in verdict.reasons[0]


def test_near_duplicates_are_drawn_together() -> None:
    before, after = [0.0] * 40, [1.0, 0.0] * 20
    alone = gain_interval(evaluation(before), evaluation(after), 0)
    groups = [index % 2 + 2 * (index // 20) for index in range(40)]
    together = gain_interval(evaluation(before, groups), evaluation(after, groups), 0)
    assert together[1] - together[0] > alone[1] - alone[0]
