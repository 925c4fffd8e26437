import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.loop.loss import MAX_WEIGHT, contrastive_loss, question_weights

QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
PASSAGES = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
POSITIVE = torch.tensor([0, 1])
NONE = torch.zeros(2, 3, dtype=torch.bool)
ONES = torch.ones(2)


def test_hand_computed() -> None:
    loss = contrastive_loss(QUERIES, PASSAGES, POSITIVE, NONE, ONES, temperature=0.5)
    first = math.exp(2) / (math.exp(2) + math.exp(1.2) + 1)
    second = math.exp(1.6) / (1 + math.exp(1.6) + math.exp(2))
    assert loss.probability.tolist() == pytest.approx([first, second], abs=1e-6)
    assert float(loss.value) == pytest.approx(-(math.log(first) + math.log(second)) / 2, abs=1e-6)


def test_a_model_that_is_searched_by_inner_product_is_trained_for_it() -> None:
    # The second passage points where the question does; the first is longer.
    passages = torch.tensor([[1.8, 2.4], [1.0, 0.0], [0.0, 1.0]])
    by_cosine, by_product = (
        contrastive_loss(QUERIES, passages, POSITIVE, NONE, ONES, temperature=0.5, cosine=cosine).probability[1]
        for cosine in (True, False)
    )
    logits = torch.tensor([2.4, 0.0, 1.0]) / ((3 + 1 + 1) / 3) / 0.5
    assert float(by_product) == pytest.approx(float(logits.softmax(0)[1]), abs=1e-6)
    assert float(by_cosine) != pytest.approx(float(by_product), abs=1e-3)


def test_excluded_passages_are_not_negatives_and_positives_are_never_excluded() -> None:
    excluded = torch.tensor([[True, True, True], [False, False, True]])
    loss = contrastive_loss(QUERIES, PASSAGES, POSITIVE, excluded, ONES, temperature=0.5)
    assert loss.probability.tolist() == pytest.approx([1.0, math.exp(1.6) / (1 + math.exp(1.6))], abs=1e-6)


def test_hand_computed_focus_minimum_and_strength() -> None:
    log_p = torch.log(torch.tensor([0.5, 0.01]))
    assert question_weights(log_p, 0.5, 0.0).tolist() == pytest.approx([0.5**-0.5, 10.0], rel=1e-5)
    assert question_weights(log_p, 3.0, 0.1).tolist() == pytest.approx([0.25, 0.1], rel=1e-5)
    loss = contrastive_loss(QUERIES, PASSAGES, POSITIVE, NONE, torch.tensor([1.0, 0.5]), temperature=0.5)
    assert loss.weight.tolist() == pytest.approx([4 / 3, 2 / 3])


def test_the_loss_equals_multiple_negatives_ranking_loss() -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.manual_seed(1)
    anchors, positives, negatives = (torch.randn(6, 16, dtype=torch.float64).float() for _ in range(3))
    theirs = MultipleNegativesRankingLoss(SentenceTransformer(modules=[torch.nn.Identity()], device="cpu"), scale=20.0)
    expected = theirs.compute_loss_from_embeddings([anchors, positives, negatives], torch.empty(0))
    excluded = torch.zeros(6, 12, dtype=torch.bool)
    ours = contrastive_loss(
        anchors, torch.cat([positives, negatives]), torch.arange(6), excluded, torch.ones(6), temperature=0.05
    )
    assert float(ours.value) == pytest.approx(float(expected), abs=1e-6)


def test_the_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    queries, passages = (torch.randn(size, 5, dtype=torch.float64, requires_grad=True) for size in (4, 7))
    excluded = torch.zeros(4, 7, dtype=torch.bool)
    excluded[0, 5] = excluded[2, 1] = True
    # The weights are no part of what is gone down on: as they are taken out of the gradient, so here of the function.
    weight = contrastive_loss(
        queries, passages, torch.arange(4), excluded, torch.tensor([1.0, 0.5, 0.5, 1.0]), temperature=0.3, focus=0.5
    ).weight

    def value(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(queries, passages, torch.arange(4), excluded, weight, temperature=0.3, focus=1.0).value

    # Computed in float32, so the quotients are rough.
    assert torch.autograd.gradcheck(value, (queries, passages), eps=1e-2, atol=2e-3, rtol=2e-2, nondet_tol=0.0)


@given(temperature=st.floats(0.02, 0.5), colder=st.floats(0.3, 0.9))
def test_a_lower_temperature_concentrates_on_the_nearest_negatives(temperature: float, colder: float) -> None:
    queries = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([0.3, 0.6, 0.9, 1.2])

    def share_of_the_nearest(temperature: float) -> float:
        passages = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()
        loss = contrastive_loss(
            queries, passages, torch.tensor([3]), torch.zeros(1, 4, dtype=torch.bool), torch.ones(1),
            temperature=temperature,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss.value, passages)
        pushes = gradient[:3].norm(dim=1) / angles[:3].sin()
        return float(pushes[0] / pushes.sum())

    assert share_of_the_nearest(temperature * colder) > share_of_the_nearest(temperature)


@given(log_p=st.lists(st.floats(-20, 0), min_size=2, max_size=8), focus=st.floats(1, 5), minimum=st.floats(0.001, 1))
def test_a_minimum_raises_only_smaller_weights(log_p: list[float], focus: float, minimum: float) -> None:
    without = question_weights(torch.tensor(log_p), focus, 0.0)
    lifted = question_weights(torch.tensor(log_p), focus, minimum)
    below = without < minimum
    assert torch.equal(lifted[~below], without[~below])
    assert torch.allclose(lifted[below], torch.tensor(minimum))


@given(log_p=st.floats(-20, 0), focus=st.floats(0, 5))
def test_a_minimum_of_zero_is_off(log_p: float, focus: float) -> None:
    # The bounds that are there in any case keep a weight from vanishing, and one question from taking the whole batch.
    expected = min(max(math.exp((focus - 1) * log_p), 1e-6), MAX_WEIGHT)
    assert float(question_weights(torch.tensor([log_p]), focus, 0.0)) == pytest.approx(expected, rel=1e-4)


@given(hard=st.floats(-6, -2), easier=st.floats(0.1, 1.9), percent=st.integers(70, 130))
def test_focus_below_one_favours_harder_and_above_one_easier_negatives(
    hard: float, easier: float, percent: int
) -> None:
    focus = percent / 100
    harder, easy = question_weights(torch.tensor([hard, hard + easier], dtype=torch.float64), focus, 0.0).tolist()
    assert (harder > easy) if focus < 1 else (harder < easy) if focus > 1 else (harder == easy)


@given(
    log_p=st.lists(st.floats(-200, 0), min_size=2, max_size=8),
    focus=st.floats(0, 5),
    minimum=st.floats(0, 1),
)
def test_weights_are_finite_bounded_and_ordered(log_p: list[float], focus: float, minimum: float) -> None:
    weights = question_weights(torch.tensor(sorted(log_p)), focus, minimum)
    assert torch.isfinite(weights).all()
    assert bool((weights > 0).all())
    assert bool((weights >= min(minimum, MAX_WEIGHT) * (1 - 1e-6)).all())
    assert bool((weights <= MAX_WEIGHT).all())
    steps = weights.diff()
    assert bool((steps <= 0).all() if focus <= 1 else (steps >= 0).all())


@given(focus=st.floats(0, 5), minimum=st.floats(0, 1), temperature=st.floats(0.001, 1))
def test_the_loss_is_finite_and_weights_have_mean_one(focus: float, minimum: float, temperature: float) -> None:
    loss = contrastive_loss(
        QUERIES, PASSAGES, torch.tensor([2, 0]), NONE, ONES, temperature=temperature, focus=focus, minimum=minimum
    )
    assert math.isfinite(float(loss.value))
    assert float(loss.weight.mean()) == pytest.approx(1, abs=1e-5)
