"""How well held-out questions find their passages, before and after, and whether the difference may be believed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foldtune.events import GateVerdict, RetrievalMetrics
from trainers.data.dataset import Dataset
from trainers.data.similarity import tiles

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

CUTOFF = 10
BOOTSTRAP_SAMPLES = 2_000
# Under so many groups of questions the bootstrap's interval is itself a guess.
MIN_GROUPS = 20
# Under so many questions a folder's mean says nothing, and would tell of single ones.
MIN_FOLDER_QUESTIONS = 5
# How far the interval of a gain that is larger than this may reach below zero: a gain that is sure but for a hundredth
# of nDCG is let through, because the next round of logs corrects it, and a model that is never replaced never improves.
# A smaller gain must be sure, or every retraining would be another toss of a coin.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Evaluation:
    """Measures of each held-out question, ``[n]``, recall for each k up to the cutoff; ``groups`` says which questions
    are near-duplicates.
    """

    recall: dict[int, Floats]
    reciprocal_rank: Floats
    ndcg: Floats
    groups: Indices
    documents: int

    def of(self, places: Indices) -> "Evaluation":
        """Of the questions at ``places`` only."""
        return replace(
            self,
            recall={k: found[places] for k, found in self.recall.items()},
            reciprocal_rank=self.reciprocal_rank[places],
            ndcg=self.ndcg[places],
            groups=self.groups[places],
        )

    def recall_curve(self) -> list[float]:
        """Mean recall@1, recall@2 … up to the cutoff."""
        return [float(self.recall[k].mean()) for k in range(1, CUTOFF + 1)]

    def metrics(self) -> RetrievalMetrics:
        """The means."""
        return RetrievalMetrics(
            recall_at_1=float(self.recall[1].mean()),
            recall_at_5=float(self.recall[5].mean()),
            recall_at_10=float(self.recall[10].mean()),
            mrr_at_10=float(self.reciprocal_rank.mean()),
            ndcg_at_10=float(self.ndcg.mean()),
            questions=len(self.ndcg),
            documents=self.documents,
        )


def evaluate(
    dataset: Dataset,
    held_out: Indices,
    queries: torch.Tensor,
    passages: torch.Tensor,
    candidates: Indices | None = None,
) -> Evaluation:
    """Search each held-out question in all searchable passages; every known positive is relevant.

    ``queries`` ``[held_out, d]`` and ``passages`` ``[searchable, d]`` are embeddings. With ``candidates`` ``[n]`` only
    these passages are searched, and ``passages`` ``[n, d]`` are theirs.
    """
    found = nearest(queries, passages, CUTOFF)
    if candidates is not None:
        found = np.where(found >= 0, candidates[found], -1)
    hits = dataset.is_known_positive(held_out[:, None], found)
    asked, _ = dataset.known_pairs()
    relevant = np.searchsorted(asked, held_out, side="right") - np.searchsorted(asked, held_out, side="left")
    return Evaluation(
        recall={k: hits[:, :k].sum(axis=1) / relevant for k in range(1, CUTOFF + 1)},
        reciprocal_rank=reciprocal_rank(hits),
        ndcg=ndcg(hits, relevant),
        groups=dataset.groups[held_out],
        documents=len(passages),
    )


def nearest(queries: torch.Tensor, passages: torch.Tensor, depth: int) -> Indices:
    """The ``depth`` nearest passages by inner product, ``[n, depth]``, in tiles of bounded memory; -1 past the end."""
    found = np.full((len(queries), depth), -1, dtype=np.int64)
    depth = min(depth, len(passages))
    for part, scores in tiles(queries, passages):
        found[part, :depth] = scores.topk(depth, dim=1).indices.cpu().numpy()
    return found


def reciprocal_rank(hits: npt.NDArray[np.bool_]) -> Floats:
    """1 / rank of the first hit, 0 without one; ``hits`` ``[n, ranks]``."""
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def ndcg(hits: npt.NDArray[np.bool_], relevant: Indices) -> Floats:
    """Binary nDCG (Järvelin and Kekäläinen 2002): Σ 1 / log2(rank + 1) of the hits, over that of the best order."""
    discounts = 1 / np.log2(np.arange(hits.shape[1]) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    return np.asarray((hits * discounts).sum(axis=1) / ideal[np.minimum(relevant, hits.shape[1])])


def by_folder(dataset: Dataset, held_out: Indices, before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """Means of the questions of each folder that has enough of them; one that several folders know counts in each."""
    asked: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(held_out):
        for folder in dataset.folders[question]:
            asked[folder].append(place)

    def means(evaluation: Evaluation, places: list[int]) -> dict[str, float]:
        return evaluation.of(np.array(places)).metrics().model_dump(exclude={"questions", "documents"})

    return {
        folder: {"questions": len(places), "before": means(before, places), "after": means(after, places)}
        for folder, places in sorted(asked.items())
        if len(places) >= MIN_FOLDER_QUESTIONS
    }


def gain_interval(before: Evaluation, after: Evaluation, seed: int) -> tuple[float, float]:
    """95% paired bootstrap interval of the mean nDCG gain; near-duplicate questions are drawn together."""
    gains = after.ndcg - before.ndcg
    _, group = np.unique(before.groups, return_inverse=True)
    sums, sizes = np.bincount(group, weights=gains), np.bincount(group)
    generator = np.random.default_rng(seed)
    means = np.empty(BOOTSTRAP_SAMPLES)
    for sample in range(BOOTSTRAP_SAMPLES):
        drawn = generator.integers(len(sums), size=len(sums))
        means[sample] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def gate(
    before: Evaluation,
    after: Evaluation,
    seed: int,
    baseline: str = "the base model",
    refusals: Sequence[str] = (),
) -> GateVerdict:
    """Promote a model whose gain over ``baseline`` is above zero and not a matter of chance, within the tolerance if it
    is larger than that; ``refusals`` are what else speaks against it.
    """
    gain = float((after.ndcg - before.ndcg).mean())
    low, high = gain_interval(before, after, seed)
    groups = len(np.unique(before.groups))
    numbers = f"nDCG@10 {before.ndcg.mean():.4f} → {after.ndcg.mean():.4f} on {len(before.ndcg)} held-out questions"
    interval = f"95% interval of the gain {low:+.4f} to {high:+.4f}"
    reasons: list[str] = []
    if groups < MIN_GROUPS:
        reasons.append(f"{groups} held-out groups of questions are too few to judge by; {MIN_GROUPS} are needed")
    if gain <= 0:
        reasons.append(f"not better than {baseline}: {numbers}")
    elif low < (bound := -TOLERANCE if gain > TOLERANCE else 0.0):
        reasons.append(f"the gain may be chance: {numbers}, {interval}, its lower end is below {bound:+.2f}")
    reasons += refusals
    promote = not reasons
    if promote:
        reasons.append(f"better than {baseline}: {numbers}, {interval}")
    return GateVerdict(promote=promote, reasons=tuple(reasons), ndcg_gain=gain, ndcg_gain_interval=(low, high))
