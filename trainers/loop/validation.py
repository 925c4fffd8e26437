"""Validation: nDCG on the validation questions, and the interpolation weight that is best by it."""

from dataclasses import dataclass

import numpy as np
import torch

from trainers.data.dataset import Dataset
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.evaluation.metrics import evaluate
from trainers.model.tokens import Indices

# Where embedding all documents after each epoch would take too long, the candidates are the positives and this many
# documents.
SAMPLED_DOCUMENTS = 2_000
# Interpolation weights of the trained model; 1.0 is the trained model alone. In between, a model keeps more of what it
# knew than it loses of what it has learned (WiSE-FT, arXiv 2109.01903; for embedding models LM-Cocktail, 2311.13534).
ALPHAS = (0.4, 0.6, 0.8, 1.0)


class Validation:
    """Retrieval of the validation ``questions`` among ``passages``: all searchable passages, or if ``sampled`` the
    questions' positives and a sample of the documents. Texts are truncated as in training.
    """

    def __init__(
        self, encoder: TrainableEncoder, dataset: Dataset, questions: Indices, *, sampled: bool, seed: int
    ) -> None:
        self._encoder, self._dataset, self.questions = encoder, dataset, questions
        self.passages = np.arange(dataset.searchable)
        if sampled:
            positive_questions, positives = dataset.known_pairs()
            size = min(SAMPLED_DOCUMENTS, dataset.documents)
            sample = np.random.default_rng(seed).choice(dataset.documents, size=size, replace=False)
            self.passages = np.union1d(positives[np.isin(positive_questions, questions)], sample)

    def select(self, queries: torch.Tensor, passages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings of ``questions`` and ``passages`` out of those of the whole dataset."""
        return (
            queries[torch.from_numpy(self.questions).to(queries.device)],
            passages[torch.from_numpy(self.passages).to(passages.device)],
        )

    def ndcg(self, embeddings: tuple[torch.Tensor, torch.Tensor] | None = None) -> float:
        """Mean nDCG@10 with the current weights; ``embeddings`` of ``questions`` and ``passages``, if already made."""
        queries, passages = embeddings or self._encoder.embed(self.questions, self.passages)
        return float(evaluate(self._dataset, self.questions, queries, passages, self.passages).ndcg.mean())


@dataclass(frozen=True)
class WeightInterpolation:
    """nDCG@10 on the validation questions for each alpha, and the chosen alpha."""

    ndcg: dict[float, float]
    alpha: float


def interpolate_weights(
    encoder: TrainableEncoder, start: list[torch.Tensor], validation: Validation, *, ndcg: float
) -> WeightInterpolation:
    """Give ``encoder`` the best weights ``start + alpha · (trained - start)``, on equal nDCG those with the smallest
    alpha, which forget least. ``ndcg`` is that of the trained weights, which ``encoder`` has when this is called.
    """
    trained = encoder.weights()

    def load_interpolated(alpha: float) -> None:
        encoder.load_weights([torch.lerp(first, last, alpha) for first, last in zip(start, trained, strict=True)])

    scores: dict[float, float] = {}
    for alpha in ALPHAS[:-1]:
        load_interpolated(alpha)
        scores[alpha] = validation.ndcg()
    scores[ALPHAS[-1]] = ndcg
    best = max(ALPHAS, key=lambda alpha: (scores[alpha], -alpha))
    load_interpolated(best)
    return WeightInterpolation(scores, best)
