"""The loss: InfoNCE with in-batch negatives, each question weighted by its difficulty and its label's strength."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

# p^(focus - 1) is unbounded: a question that the model gets all wrong must not dominate the batch.
MAX_WEIGHT = 10.0
# With a high focus, all weights of a hard batch would underflow, and their normalization would divide 0 by 0.
_MIN_WEIGHT = 1e-6


@dataclass(frozen=True)
class BatchLoss:
    """The scalar loss with its graph; for each question the probability of its positive and its weight, detached."""

    value: torch.Tensor
    probability: torch.Tensor
    weight: torch.Tensor


def contrastive_loss(
    queries: torch.Tensor,
    passages: torch.Tensor,
    positive: torch.Tensor,
    excluded: torch.Tensor,
    strength: torch.Tensor,
    *,
    temperature: float,
    focus: float = 1.0,
    minimum: float = 0.0,
    cosine: bool = True,
) -> BatchLoss:
    """The mean of ``w · -log p`` over ``b`` questions, with the batch's ``m`` distinct passages as candidates.

    ``p`` is the probability of the positive: softmax of similarity / temperature over all passages that are not
    excluded. Similarity is the cosine or, of a model that is searched with it, the inner product. ``w`` is
    ``max(p^(focus - 1), minimum)``, detached and capped, times the strength, and then normalized to mean 1 over the
    batch, so that the learning rate keeps its meaning. ``focus`` < 1 gives hard questions more weight, > 1 easy ones;
    ``minimum`` is a lower bound of the weight. With focus 1 and equal strengths this is InfoNCE (van den Oord et al.
    2018, arXiv 1807.03748), the ``MultipleNegativesRankingLoss`` of sentence-transformers.

    Args:
        queries: ``[b, d]``.
        passages: ``[m, d]``.
        positive: ``[b]``, the index of each question's positive in ``passages``.
        excluded: ``[b, m]``, true where a passage must not serve as a negative; ignored for the positive itself.
        strength: ``[b]``, in (0, 1].
    """
    logits = similarities(queries.float(), passages.float(), cosine=cosine) / temperature
    excluded = excluded.scatter(1, positive.unsqueeze(1), value=False)
    log_p = logits.masked_fill(excluded, -torch.inf).log_softmax(1).gather(1, positive.unsqueeze(1)).squeeze(1)
    weight = question_weights(log_p.detach(), focus, minimum) * strength
    weight = weight / weight.mean()
    return BatchLoss((weight * -log_p).mean(), log_p.detach().exp(), weight)


def similarities(queries: torch.Tensor, passages: torch.Tensor, *, cosine: bool) -> torch.Tensor:
    """Cosines ``[b, m]``, or inner products in units of the mean lengths, so that a temperature means the same."""
    if cosine:
        return normalize(queries, dim=1) @ normalize(passages, dim=1).T
    unit = queries.detach().norm(dim=1).mean() * passages.detach().norm(dim=1).mean()
    products: torch.Tensor = queries @ passages.T / unit.clamp(min=torch.finfo(unit.dtype).tiny)
    return products


def question_weights(log_p: torch.Tensor, focus: float, minimum: float) -> torch.Tensor:
    """``max(p^(focus - 1), minimum)``, at most ``MAX_WEIGHT``; computed from ``log p``, as a small ``p`` underflows."""
    return ((focus - 1) * log_p).exp().clamp(min=max(minimum, _MIN_WEIGHT), max=MAX_WEIGHT)
