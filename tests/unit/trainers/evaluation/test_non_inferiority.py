"""What a training cost elsewhere, within a margin."""

import numpy as np
import pytest

from tests.unit.trainers.evaluation.conftest import evaluation
from trainers.evaluation.non_inferiority import NonInferiority

SURE, UNSURE = np.tile([0.01, -0.01], 50), np.tile([0.9, -0.9], 50)


def loss(fall: float, spread: np.ndarray) -> NonInferiority:
    after = (0.9 - fall + spread).tolist()
    return NonInferiority("general questions", "lost on", evaluation([0.9] * 100), evaluation(after), 0.05, seed=0)


@pytest.mark.parametrize(
    ("fall", "spread", "warned", "refused"),
    [
        (-0.1, SURE, 0, 0),
        (0.03, SURE, 0, 0),
        # A real fall that may be above the margin.
        (0.0495, SURE, 1, 0),
        (0.06, SURE, 1, 1),
        # May be chance: it is told if it is above the margin, and refuses nothing.
        (0.03, UNSURE, 0, 0),
        (0.06, UNSURE, 1, 0),
    ],
)
def test_a_sure_fall_above_the_margin_refuses_and_an_unsure_one_warns(
    fall: float, spread: np.ndarray, warned: int, refused: int
) -> None:
    lost = loss(fall, spread)
    assert (len(lost.warnings), len(lost.refusals)) == (warned, refused)
    assert lost.fall == pytest.approx(fall)
    assert lost.interval.low < fall < lost.interval.high
    for message in lost.warnings:
        assert message.startswith(f"lost on general questions: nDCG@10 0.9000 → {0.9 - fall:.4f}, a fall of")
    for message in lost.refusals:
        assert message.endswith(", 100 questions), more than trainer.max_loss, 0.05")


def test_what_is_lost_is_reported_with_its_uncertainty() -> None:
    metrics = loss(0.03, SURE).metrics()
    assert metrics["ndcg_fall"] == pytest.approx(0.03)
    low, high = metrics["interval"]
    assert low < 0.03 < high
    assert (metrics["margin"], metrics["before"]["questions"]) == (0.05, 100)
