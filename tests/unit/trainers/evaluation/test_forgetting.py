"""Metrics on the general questions."""

import math
from pathlib import Path

import pytest
import torch

from trainers.evaluation.forgetting import MAX_DISTRACTORS, Forgetting, GeneralMetrics, measure_general
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder


def after(ndcg: float) -> Forgetting:
    return Forgetting(GeneralMetrics(0.9, 0.9), GeneralMetrics(0.7, ndcg))


@pytest.mark.parametrize(
    ("ndcg", "warned", "refused"), [(0.95, 0, 0), (0.86, 0, 0), (0.84, 1, 0), (0.76, 1, 0), (0.74, 1, 1)]
)
def test_forgetting_is_warned_about_and_much_of_it_prevents_promotion(ndcg: float, warned: int, refused: int) -> None:
    forgetting = after(ndcg)
    assert (len(forgetting.warnings), len(forgetting.refusals)) == (warned, refused)
    assert all(f"nDCG@10 0.9000 → {ndcg:.4f}" in message for message in [*forgetting.warnings, *forgetting.refusals])
    assert forgetting.fall == pytest.approx(0.9 - ndcg)


@pytest.mark.slow
def test_a_pretrained_model_scores_high_and_a_random_one_low(tiny_folder: Path) -> None:
    minilm, tiny = Encoder.load(packaged_minilm_folder(), "cpu"), Encoder.load(tiny_folder, "cpu")
    metrics = measure_general(minilm, torch.empty((0, minilm.dimension)), seed=0)
    assert metrics.recall_at_1 > 0.9
    assert metrics.ndcg_at_10 > 0.95
    assert measure_general(tiny, torch.empty((0, tiny.dimension)), seed=0).ndcg_at_10 < 0.5


def test_documents_are_distractors(tiny_folder: Path) -> None:
    tiny = Encoder.load(tiny_folder, "cpu")
    alone = measure_general(tiny, torch.zeros((0, tiny.dimension)), seed=0)
    # MAX_DISTRACTORS are drawn, and the same ones for the same seed.
    many = torch.randn((3 * MAX_DISTRACTORS, tiny.dimension), generator=torch.Generator().manual_seed(0))
    crowded = measure_general(tiny, many, seed=1)
    assert crowded == measure_general(tiny, many, seed=1)
    assert crowded.ndcg_at_10 < alone.ndcg_at_10


def test_hand_computed(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Encoder.load(tiny_folder, "cpu")
    monkeypatch.setattr(Encoder, "encode", lambda *_: torch.eye(60).numpy())
    assert measure_general(tiny, torch.zeros((9, 60)), seed=0) == GeneralMetrics(1.0, 1.0)
    # One document that is nearer to each of the first 30 questions than their own passages.
    nearer = torch.cat([torch.ones(30), torch.zeros(30)])[None] * 2
    metrics = measure_general(tiny, nearer, seed=0)
    assert metrics.recall_at_1 == 0.5
    assert metrics.ndcg_at_10 == pytest.approx(0.5 + 0.5 / math.log2(3))
