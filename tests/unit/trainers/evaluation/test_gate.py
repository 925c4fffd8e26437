"""The promotion gate and its interval."""

from collections.abc import Callable

import numpy as np
import pytest

from foldtune.events import GateVerdict
from tests.unit.trainers.evaluation.conftest import evaluation
from trainers.evaluation.gate import gain_interval, gate
from trainers.evaluation.metrics import Floats

Draw = Callable[[np.random.Generator, int], Floats]
MIN_GAIN = 0.005


def judge(gains: Floats | list[float], *, min_gain: float = MIN_GAIN, **options: object) -> GateVerdict:
    """The verdict on gains of single questions over 0.5."""
    before, after = evaluation([0.5] * len(gains)), evaluation((0.5 + np.asarray(gains)).tolist())
    return gate(before, after, 0, min_gain=min_gain, **options)  # type: ignore[arg-type]


def test_the_gate_gives_its_reasons() -> None:
    better, worse = judge([0.4, 0.2] * 20), judge([-0.4, -0.2] * 20)
    assert (better.promote, better.outcome) == (True, "better")
    assert better.ndcg_gain == pytest.approx(0.3)
    assert better.ndcg_gain_interval[0] > 0.2
    assert (worse.promote, worse.outcome) == (False, "not_better")
    assert worse.reasons[0].startswith("not better than the base model: nDCG@10 0.5000 → 0.2000 on 40 held-out")
    refused = judge([0.4, 0.2] * 20, refusals=["it forgot how to read"])
    assert (refused.promote, refused.outcome) == (False, "refused")
    assert refused.reasons == ("it forgot how to read",)
    both = judge([-0.4, -0.2] * 20, refusals=["it forgot how to read"])
    assert both.reasons == (*worse.reasons, "it forgot how to read")


def test_too_few_questions_are_a_verdict_of_their_own() -> None:
    few = judge([0.4] * 19)
    assert (few.promote, few.outcome) == (False, "too_few_questions")
    assert few.reasons[0].startswith("too few questions to tell: 19 held-out groups of questions, at least 20")
    assert judge([-0.4] * 19).outcome == "too_few_questions"
    # With so few, nothing lies outside of the interval.
    assert judge([0.4] * 2).ndcg_gain_interval == (-1.0, 1.0)


def test_a_gain_below_the_smallest_worthwhile_one_is_not_promoted() -> None:
    sure = [0.004, 0.002] * 100
    verdict = judge(sure)
    assert verdict.ndcg_gain_interval[0] > 0
    assert (verdict.promote, verdict.outcome) == (False, "too_small")
    assert "less than trainer.min_gain, 0.005" in verdict.reasons[0]
    assert judge(sure, min_gain=0.003).promote
    assert judge(sure, min_gain=0).promote


@pytest.mark.parametrize(
    "gains",
    [
        # One question of 93 moved by one place.
        [1 / 93] + [0.0] * 92,
        [0.0] * 93,
        # Five of five gains: one in 32 by chance, and they are worth much.
        [0.3] * 5 + [0.0] * 88,
        # A large gain that is not sure.
        [1.0, 0.0, -0.9] * 20,
        # All cancel out, but for the rest of a sum.
        [0.1, 0.2, -0.3] * 20,
    ],
)
def test_a_gain_whose_interval_is_not_above_zero_is_not_promoted(gains: list[float]) -> None:
    verdict = judge(gains)
    assert verdict.ndcg_gain_interval[0] <= 0
    assert (verdict.promote, verdict.outcome in {"chance", "not_better"}) == (False, True)


def test_a_few_large_gains_and_no_loss_are_promoted() -> None:
    assert judge([0.3] * 9 + [0.0] * 84).promote


def test_many_small_gains_do_not_outweigh_losses_too_rare_to_have_been_seen_often() -> None:
    # The mean of random subsets alone is 0.008 here, and its interval above zero.
    assert judge([-0.45] * 2 + [0.025] * 58).outcome == "chance"


def sparse(changed: float) -> Draw:
    return lambda generator, n: generator.choice([-0.37, 0.0, 0.37], n, p=[changed / 2, 1 - changed, changed / 2])


def rank_changes(generator: np.random.Generator, n: int) -> Floats:
    values = np.append(1 / np.log2(np.arange(2, 12)), 0)
    return np.asarray(generator.choice(values, n) - generator.choice(values, n))


NOISE: dict[str, Draw] = {
    "normal": lambda generator, n: generator.normal(0, 0.2, n),
    "one question in 30 changes": sparse(1 / 30),
    "one question in 10 changes": sparse(0.1),
    "ranks change": rank_changes,
    "heavy tails": lambda generator, n: np.clip(generator.standard_t(1.5, n) * 0.05, -1, 1),
    "small gains, larger losses": lambda generator, n: 0.1 - generator.exponential(0.1, n),
    "small losses, larger gains": lambda generator, n: generator.exponential(0.1, n) - 0.1,
}


@pytest.mark.slow
@pytest.mark.parametrize("questions", [40, 93])
@pytest.mark.parametrize("noise", NOISE)
def test_noise_is_promoted_in_at_most_one_training_of_twenty(noise: str, questions: int) -> None:
    generator, trainings = np.random.default_rng(questions), 100
    promoted = sum(judge(NOISE[noise](generator, questions), min_gain=0).promote for _ in range(trainings))
    assert promoted <= 0.05 * trainings


def test_some_noise_is_not_promoted() -> None:
    generator = np.random.default_rng(0)
    promoted = [judge(NOISE[noise](generator, 93), min_gain=0).promote for noise in NOISE for _ in range(3)]
    assert sum(promoted) <= 1


def test_a_real_gain_is_promoted() -> None:
    generator = np.random.default_rng(0)
    assert all(judge(generator.normal(0.05, 0.2, 250)).promote for _ in range(5))


def test_near_duplicates_are_resampled_together() -> None:
    before, after = [0.0] * 40, [1.0, 0.0] * 20
    alone = gain_interval(evaluation(before), evaluation(after), 0)
    groups = [index % 2 + 2 * (index // 20) for index in range(40)]
    together = gain_interval(evaluation(before, groups), evaluation(after, groups), 0)
    assert together.high - together.low > alone.high - alone.low
    # Forty copies of one question are one question.
    assert gain_interval(evaluation(before, [0] * 40), evaluation(after, [0] * 40), 0) == (-1, 1)
