"""The loss: InfoNCE with in-batch negatives, weighted by how hard a question is and how far its label is trusted."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

# A question that the model has all wrong must not take the whole batch: p^(focus - 1) has no bound of its own.
MAX_WEIGHT = 10.0
# A batch that is hard throughout must not divide nothing by nothing where a high focus makes every weight vanish.
_TINY = 1e-6


@dataclass(frozen=True)
class BatchLoss:
    """The scalar to go down on; for each question its probability of the positive and its weight, ``[b]``, detached."""

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
) -> BatchLoss:
    """The loss of ``b`` questions over the batch's ``m`` distinct passages, as the mean of ``w · -log p``.

    ``p`` is the probability of the positive: softmax of cosine similarity / temperature over all passages that are not
    excluded. ``w`` is ``max(p^(focus - 1), minimum)``, detached and capped, times the strength, and then scaled to mean
    1 over the batch, so that the learning rate keeps its meaning. ``focus`` < 1 weighs hard questions up, > 1 easy
    ones; ``minimum`` lifts only the weights below it. With focus 1 and equal strengths this is InfoNCE (van den Oord et
    al. 2018), the ``MultipleNegativesRankingLoss`` of sentence-transformers.

    Args:
        queries: ``[b, d]``.
        passages: ``[m, d]``.
        positive: ``[b]``, the index of each question's positive in ``passages``.
        excluded: ``[b, m]``, true where a passage is no negative of a question; the positive itself always counts.
        strength: ``[b]``, in (0, 1].
    """
    logits = normalize(queries.float(), dim=1) @ normalize(passages.float(), dim=1).T / temperature
    excluded = excluded.scatter(1, positive.unsqueeze(1), value=False)
    log_p = logits.masked_fill(excluded, -torch.inf).log_softmax(1).gather(1, positive.unsqueeze(1)).squeeze(1)
    weight = question_weights(log_p.detach(), focus, minimum) * strength
    weight = weight / weight.mean()
    return BatchLoss((weight * -log_p).mean(), log_p.detach().exp(), weight)


def question_weights(log_p: torch.Tensor, focus: float, minimum: float) -> torch.Tensor:
    """``max(p^(focus - 1), minimum)``, at most ``MAX_WEIGHT``, from the logarithm of ``p``: small ones keep digits."""
    return ((focus - 1) * log_p).exp().clamp(min=max(minimum, _TINY), max=MAX_WEIGHT)
