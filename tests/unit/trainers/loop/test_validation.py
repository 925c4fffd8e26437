from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.trainers.loop.test_training import Steps, request
from trainers.data.dataset import Dataset
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.evaluation.metrics import evaluate
from trainers.loop.training import TrainingRecord, train
from trainers.loop.validation import ALPHAS, Validation, interpolate_weights
from trainers.model.encoder import Encoder

QUESTIONS = np.arange(0, 40, 3)


@pytest.fixture
def layers(tiny_folder: Path, small_dataset: Dataset, tmp_path: Path) -> TrainableEncoder:
    return TrainableEncoder(Encoder.load(tiny_folder, "cpu"), small_dataset, 1, tmp_path)


class Scripted(Validation):
    """Says what it is told to, and remembers the weights that it was asked about."""

    def __init__(self, layers: TrainableEncoder, scores: list[float]) -> None:
        self._layers, self._scores = layers, iter(scores)
        self.seen: list[list[torch.Tensor]] = []

    def ndcg(self, embedded: tuple[torch.Tensor, torch.Tensor] | None = None) -> float:  # noqa: ARG002 - as it is called
        self.seen.append(self._layers.weights())
        return next(self._scores)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def trained(layers: TrainableEncoder, dataset: Dataset, validation: Validation, epochs: int) -> TrainingRecord:
    asked = request()
    asked = asked.model_copy(update={"training": asked.training.model_copy(update={"epochs": epochs})})
    rows = np.setdiff1d(np.arange(40), QUESTIONS)
    start = layers.embed_all()
    return train(layers, dataset, rows, asked, start=start, observer=Steps(), validation=validation)


@pytest.mark.parametrize(
    ("scores", "best", "epochs"),
    [
        ([0.2, 0.3, 0.4], 2, 3),
        ([0.2, 0.3, 0.1, 0.9], 1, 3),
        ([0.2, 0.1, 0.9], 0, 2),
        ([0.5, 0.49, 0.6, 0.6], 2, 4),
        ([0.0], 0, 1),
    ],
)
def test_the_best_epoch_is_kept_and_the_first_that_is_clearly_worse_is_the_last(
    *, scores: list[float], best: int, epochs: int, layers: TrainableEncoder, small_dataset: Dataset
) -> None:
    validation = Scripted(layers, scores)
    record = trained(layers, small_dataset, validation, epochs=len(scores))
    assert record.validation == scores[:epochs]
    assert record.best_epoch == best
    assert record.stopped == (scores[epochs - 1] < 0.15 < scores[best])
    assert len(record.losses) == epochs * 4
    assert same(layers.weights(), validation.seen[best])
    assert not any(same(validation.seen[best], seen) for epoch, seen in enumerate(validation.seen) if epoch != best)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("sampled", [False, True])
def test_the_kept_weights_have_the_best_measure(
    sampled: bool, layers: TrainableEncoder, small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.loop.validation.SAMPLED_DOCUMENTS", 12)
    validation = Validation(layers, small_dataset, QUESTIONS, sampled=sampled, seed=0)
    record = trained(layers, small_dataset, validation, epochs=3)
    assert validation.ndcg() == pytest.approx(max(record.validation))
    assert validation.ndcg(layers.embed_all()) == pytest.approx(max(record.validation))


def test_among_all_passages_it_is_the_measure_of_the_evaluation(
    layers: TrainableEncoder, small_dataset: Dataset
) -> None:
    queries, passages = layers.embed_all()
    expected = evaluate(small_dataset, QUESTIONS, queries[torch.from_numpy(QUESTIONS)], passages).ndcg.mean()
    found = Validation(layers, small_dataset, QUESTIONS, sampled=False, seed=0)
    assert len(found.passages) == 50
    assert found.ndcg((queries, passages)) == pytest.approx(expected)


def test_a_sample_holds_all_positives(
    layers: TrainableEncoder, small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.loop.validation.SAMPLED_DOCUMENTS", 12)
    found = Validation(layers, small_dataset, QUESTIONS, sampled=True, seed=0)
    again = Validation(layers, small_dataset, QUESTIONS, sampled=True, seed=0)
    assert set(QUESTIONS.tolist()) < set(found.passages.tolist())
    assert len(QUESTIONS) < len(found.passages) <= len(QUESTIONS) + 12
    assert np.array_equal(found.passages, again.passages)
    # With each question's embedding put on its own passage, nothing comes before the positives.
    passages = torch.eye(50)
    assert found.ndcg((passages[:40], passages)) == 1.0
    assert found.ndcg((passages[:40].roll(1, dims=0), passages)) < 0.3


@pytest.mark.parametrize(
    ("scores", "alpha"),
    [([0.1, 0.3, 0.2, 0.2], 0.6), ([0.3, 0.3, 0.2, 0.3], 0.4), ([0.1, 0.2, 0.3, 0.4], 1.0), ([0.0] * 4, 0.4)],
)
def test_merging_takes_the_best_and_of_equal_ones_the_nearest_to_the_start(
    scores: list[float], alpha: float, layers: TrainableEncoder
) -> None:
    start = layers.weights()
    after = [weight + 1 for weight in start]
    layers.put_weights(after)
    validation = Scripted(layers, scores[:3])
    merged = interpolate_weights(layers, start, validation, ndcg=scores[3])
    assert merged.alpha == alpha
    assert merged.ndcg == dict(zip(ALPHAS, scores, strict=True))
    for share, weights in [*zip(ALPHAS, validation.seen, strict=False), (alpha, layers.weights())]:
        for one, other, mixed in zip(start, after, weights, strict=True):
            torch.testing.assert_close(mixed, one + share * (other - one))
