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
def encoder(tiny_folder: Path, small_dataset: Dataset, tmp_path: Path) -> TrainableEncoder:
    return TrainableEncoder(Encoder.load(tiny_folder, "cpu"), small_dataset, 1, tmp_path)


class Scripted(Validation):
    """Returns given scores, and records the weights at each call."""

    def __init__(self, encoder: TrainableEncoder, scores: list[float]) -> None:
        self._encoder, self._scores = encoder, iter(scores)
        self.questions, self.passages = QUESTIONS, np.arange(50)
        self.seen: list[list[torch.Tensor]] = []

    def ndcg(self, embeddings: tuple[torch.Tensor, torch.Tensor] | None = None) -> float:  # noqa: ARG002 - same signature
        self.seen.append(self._encoder.weights())
        return next(self._scores)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def trained(encoder: TrainableEncoder, dataset: Dataset, validation: Validation, epochs: int) -> TrainingRecord:
    asked = request()
    asked = asked.model_copy(update={"training": asked.training.model_copy(update={"epochs": epochs})})
    rows = np.setdiff1d(np.arange(40), QUESTIONS)
    start = encoder.embed_all()
    return train(encoder, dataset, rows, asked, start=start, listener=Steps(), validation=validation)


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
def test_the_best_epoch_is_kept_and_training_stops_early(
    *, scores: list[float], best: int, epochs: int, encoder: TrainableEncoder, small_dataset: Dataset
) -> None:
    validation = Scripted(encoder, scores)
    record = trained(encoder, small_dataset, validation, epochs=len(scores))
    assert record.validation == scores[:epochs]
    assert record.best_epoch == best
    assert record.stopped == (scores[epochs - 1] < 0.15 < scores[best])
    assert len(record.losses) == epochs * 4
    assert same(encoder.weights(), validation.seen[best])
    assert not any(same(validation.seen[best], seen) for epoch, seen in enumerate(validation.seen) if epoch != best)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("sampled", [False, True])
def test_the_kept_weights_have_the_best_score(
    sampled: bool, encoder: TrainableEncoder, small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.loop.validation.SAMPLED_DOCUMENTS", 12)
    validation = Validation(encoder, small_dataset, QUESTIONS, sampled=sampled, seed=0)
    record = trained(encoder, small_dataset, validation, epochs=3)
    assert validation.ndcg() == pytest.approx(max(record.validation))
    assert validation.ndcg(validation.select(*encoder.embed_all())) == pytest.approx(max(record.validation))


def test_validation_over_all_passages_equals_the_evaluation(encoder: TrainableEncoder, small_dataset: Dataset) -> None:
    queries, passages = encoder.embed_all()
    expected = evaluate(small_dataset, QUESTIONS, queries[torch.from_numpy(QUESTIONS)], passages).ndcg.mean()
    found = Validation(encoder, small_dataset, QUESTIONS, sampled=False, seed=0)
    assert len(found.passages) == 50
    assert found.ndcg(found.select(queries, passages)) == pytest.approx(expected)


def test_a_sample_holds_all_positives(
    encoder: TrainableEncoder, small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.loop.validation.SAMPLED_DOCUMENTS", 12)
    found = Validation(encoder, small_dataset, QUESTIONS, sampled=True, seed=0)
    again = Validation(encoder, small_dataset, QUESTIONS, sampled=True, seed=0)
    assert set(QUESTIONS.tolist()) < set(found.passages.tolist())
    assert len(QUESTIONS) < len(found.passages) <= len(QUESTIONS) + 12
    assert np.array_equal(found.passages, again.passages)
    # With each question's embedding put on its own passage, nothing comes before the positives.
    passages = torch.eye(50)
    assert found.ndcg(found.select(passages[:40], passages)) == 1.0
    assert found.ndcg(found.select(passages[:40].roll(1, dims=0), passages)) < 0.3


@pytest.mark.parametrize(
    ("scores", "alpha"),
    [([0.1, 0.3, 0.2, 0.2], 0.6), ([0.3, 0.3, 0.2, 0.3], 0.4), ([0.1, 0.2, 0.3, 0.4], 1.0), ([0.0] * 4, 0.4)],
)
def test_the_smallest_of_the_best_alphas_is_chosen(
    scores: list[float], alpha: float, encoder: TrainableEncoder
) -> None:
    start = encoder.weights()
    after = [weight + 1 for weight in start]
    encoder.load_weights(after)
    validation = Scripted(encoder, scores[:3])
    interpolation = interpolate_weights(encoder, start, validation, ndcg=scores[3])
    assert interpolation.alpha == alpha
    assert interpolation.ndcg == dict(zip(ALPHAS, scores, strict=True))
    for share, weights in [*zip(ALPHAS, validation.seen, strict=False), (alpha, encoder.weights())]:
        for one, other, mixed in zip(start, after, weights, strict=True):
            torch.testing.assert_close(mixed, one + share * (other - one))
