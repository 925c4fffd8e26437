"""Which of the weights that a training passes through are kept, chosen on the validation questions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainers.data.dataset import Dataset
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.evaluation.metrics import evaluate

Indices = npt.NDArray[np.int64]

# Where embedding all documents after each epoch would take too long, the positives are looked for among so many.
SAMPLED_DOCUMENTS = 2_000
# How far to go from the weights before the training towards those after it, the last one all the way. In between, a
# model keeps more of what it knew than it loses of what it has learned (LM-Cocktail, arXiv 2311.13534).
ALPHAS = (0.4, 0.6, 0.8, 1.0)


class Validation:
    """The validation ``questions``, searched for among all searchable passages, or with ``sampled`` among their
    positives and a sample of the documents. Texts are cut as in training.
    """

    def __init__(
        self, layers: TrainableEncoder, dataset: Dataset, questions: Indices, *, sampled: bool, seed: int
    ) -> None:
        self._layers, self._dataset, self._questions = layers, dataset, questions
        self.passages = np.arange(dataset.searchable)
        if sampled:
            asked, positives = dataset.known_pairs()
            size = min(SAMPLED_DOCUMENTS, dataset.documents)
            drawn = np.random.default_rng(seed).choice(dataset.documents, size=size, replace=False)
            self.passages = np.union1d(positives[np.isin(asked, questions)], drawn)

    def ndcg(self, embedded: tuple[torch.Tensor, torch.Tensor] | None = None) -> float:
        """Mean nDCG@10 of the model as it stands; ``embedded`` are its ``embed_all``, where that is there already."""
        if embedded is None:
            queries, passages = self._layers.embed(self._questions, self.passages)
        else:
            queries, passages = (
                whole[torch.from_numpy(part).to(whole.device)]
                for whole, part in zip(embedded, (self._questions, self.passages), strict=True)
            )
        return float(evaluate(self._dataset, self._questions, queries, passages, self.passages).ndcg.mean())


@dataclass(frozen=True)
class WeightInterpolation:
    """nDCG@10 on the validation questions for each alpha, and the alpha that was chosen."""

    ndcg: dict[float, float]
    alpha: float


def interpolate_weights(
    layers: TrainableEncoder, start: list[torch.Tensor], validation: Validation, *, ndcg: float
) -> WeightInterpolation:
    """Give ``layers`` the best weights ``start + alpha · (trained - start)``; of equally good ones the nearest to
    ``start``, where less is forgotten. ``ndcg`` is what validation said of the layers as they are.
    """
    trained = layers.weights()

    def put(alpha: float) -> None:
        layers.put_weights([torch.lerp(one, other, alpha) for one, other in zip(start, trained, strict=True)])

    found: dict[float, float] = {}
    for alpha in ALPHAS[:-1]:
        put(alpha)
        found[alpha] = validation.ndcg()
    found[ALPHAS[-1]] = ndcg
    chosen = max(ALPHAS, key=lambda alpha: (found[alpha], -alpha))
    put(chosen)
    return WeightInterpolation(found, chosen)
