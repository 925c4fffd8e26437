"""The promotion gate and its bootstrap interval."""

import numpy as np
import pytest

from tests.unit.trainers.evaluation.conftest import evaluation
from trainers.evaluation.gate import gain_interval, gate


def test_the_gate_gives_its_reasons() -> None:
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
def test_a_small_gain_must_be_significant_and_a_larger_one_within_the_tolerance(gain: float, promoted: bool) -> None:
    spread = np.tile([0.05, -0.05], 100)
    before = evaluation([0.5] * 200)
    verdict = gate(before, evaluation((0.5 + gain + spread * (1 if gain < 0.01 else 2.5)).tolist()), 0)
    assert -0.01 < verdict.ndcg_gain_interval[0] < 0
    assert verdict.promote == promoted


def test_an_insignificant_gain_is_not_promoted() -> None:
    before = evaluation([0.5] * 40)
    after = evaluation([1.0, 0.0] * 20 + [])
    after.ndcg[:2] = 1.0
    verdict = gate(before, after, 0)
    assert verdict.ndcg_gain > 0
    assert not verdict.promote
    assert "chance" in verdict.reasons[0]


def test_near_duplicates_are_resampled_together() -> None:
    before, after = [0.0] * 40, [1.0, 0.0] * 20
    alone = gain_interval(evaluation(before), evaluation(after), 0)
    groups = [index % 2 + 2 * (index // 20) for index in range(40)]
    together = gain_interval(evaluation(before, groups), evaluation(after, groups), 0)
    assert together[1] - together[0] > alone[1] - alone[0]
