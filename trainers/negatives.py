"""Which passages a question is taught to stay away from: shown but not cited, mined with the model, and random ones.

What could be an answer is taken out again, each reason with its own count.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from streams.knobs import DatasetKnobs
from trainers.dataset import Dataset
from trainers.words import WordSets

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# A mined passage that scores above this share of the question's lowest positive is as likely an unlabelled answer
# (NV-Retriever, arXiv 2407.15831: 0.95 was best). An impression is spared: the agent had it and cited another.
SCORE_MARGIN = 0.95
# Some mined passages fall to the filters, so more are fetched than are asked for.
_SPARE = 8
# Impressions are pooled over all logs of a question; the first ones are those that were ranked highest.
_MAX_IMPRESSIONS = 64
# Similarities that are in memory at once (float32: 128 MB).
_TILE = 32 * 1024**2


@dataclass(frozen=True)
class Negatives:
    """``passages`` ``[examples, hard + easy]``, -1 where nothing was left, and how many each filter took."""

    passages: Indices
    counts: dict[str, int]


@dataclass(frozen=True)
class NegativeSource:
    """What negatives are chosen from, for the examples ``rows`` of ``dataset``."""

    dataset: Dataset
    rows: Indices
    sets: WordSets
    knobs: DatasetKnobs

    def choose(self, queries: torch.Tensor, passages: torch.Tensor, generator: np.random.Generator) -> Negatives:
        """Hard negatives, impressions first, then easy ones in place of what is missing.

        ``queries`` ``[questions, d]`` and ``passages`` ``[passages, d]`` are the current model's embeddings.
        """
        counts: Counter[str] = Counter()
        hard_wanted, easy_wanted = self.knobs.hard_negatives, self.knobs.easy_negatives
        hard = np.empty((len(self.rows), 0), dtype=np.int64)
        if hard_wanted:
            candidates = self._candidates(queries, passages, counts)
            hard = _first(candidates, self._kept(candidates, counts), hard_wanted)
        counts["hard_impressions_and_mined"] = int((hard >= 0).sum())
        wanted = easy_wanted + hard_wanted - (hard >= 0).sum(axis=1)
        drawn = generator.integers(
            self.dataset.documents, size=(len(self.rows), 2 * (hard_wanted + easy_wanted) + _SPARE)
        )
        ignored: Counter[str] = Counter()
        kept = self._kept(np.concatenate([hard, drawn], axis=1), ignored)[:, hard.shape[1] :]
        kept &= np.cumsum(kept, axis=1) <= wanted[:, None]
        easy = _first(drawn, kept, hard_wanted + easy_wanted)
        both = np.concatenate([hard, easy], axis=1)
        chosen = _first(both, both >= 0, hard_wanted + easy_wanted)
        counts["hard_filled_with_easy"] = int(hard_wanted * len(self.rows) - (hard >= 0).sum())
        counts["missing"] = int((chosen < 0).sum())
        return Negatives(chosen, dict(counts))

    def _candidates(self, queries: torch.Tensor, passages: torch.Tensor, counts: Counter[str]) -> Indices:
        """Impressions, then what the model ranks highest below the margin: ``[examples, candidates]``, -1 for none."""
        questions, of_row = np.unique(self.dataset.question[self.rows], return_inverse=True)
        lowest = self._lowest_positive(queries, passages)[questions]
        depth = min(self.dataset.documents, 2 * self.knobs.hard_negatives + _SPARE)
        mined, above = hardest(queries[questions], passages[: self.dataset.documents], lowest, depth)
        counts["above_score_margin"] = above
        shown = [self.dataset.impressions[question][:_MAX_IMPRESSIONS] for question in questions]
        width = max(map(len, shown), default=0)
        padded = np.array([[*row, *[-1] * (width - len(row))] for row in shown], dtype=np.int64).reshape(
            len(shown), width
        )
        return np.concatenate([padded, mined], axis=1)[of_row]

    def _lowest_positive(self, queries: torch.Tensor, passages: torch.Tensor) -> npt.NDArray[np.float32]:
        questions, positives = np.divmod(self.dataset.known_positives, len(self.dataset.passages))
        scores = (queries[questions] * passages[positives]).sum(dim=1).cpu().numpy()
        lowest = np.full(len(queries), np.inf, dtype=np.float32)
        np.minimum.at(lowest, questions, scores)
        return lowest

    def _kept(self, candidates: Indices, counts: Counter[str]) -> Mask:
        """Which candidates are negatives; the first filter that takes one counts it."""
        positives = self.dataset.positive[self.rows][:, None]
        kept = candidates >= 0
        known = kept & self.dataset.is_known_positive(self.dataset.question[self.rows][:, None], candidates)
        kept &= ~known
        twice = kept & _repeated(candidates)
        kept &= ~twice
        near = np.zeros_like(kept)
        pairs = np.broadcast_to(positives, candidates.shape)[kept]
        near[kept] = self.sets.jaccard(pairs, candidates[kept]) >= self.knobs.exclusion_threshold
        counts["known_positive"] += int(known.sum())
        counts["same_passage_twice"] += int(twice.sum())
        counts["near_positive_by_words"] += int(near.sum())
        return kept & ~near


def hardest(
    queries: torch.Tensor, passages: torch.Tensor, lowest_positive: npt.NDArray[np.float32], depth: int
) -> tuple[Indices, int]:
    """The ``depth`` nearest passages below the score margin of each query, nearest first; and how many lay above it.

    Exact. The similarities are made in tiles of bounded size, never ``[n, m]`` at once. -1 where fewer are left.
    """
    bound = lowest_positive - (1 - SCORE_MARGIN) * np.abs(lowest_positive)
    rows = max(1, _TILE // max(1, len(passages)))
    found, above = np.empty((len(queries), depth), dtype=np.int64), 0
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ passages.T
        limit = torch.from_numpy(bound[start : start + rows]).to(scores).unsqueeze(1)
        too_near = scores > limit
        above += int(too_near.sum())
        values, indices = scores.masked_fill_(too_near, -torch.inf).topk(depth, dim=1)
        found[start : start + rows] = indices.masked_fill(values == -torch.inf, -1).cpu().numpy()
    return found, above


def _repeated(candidates: Indices) -> Mask:
    """True for every occurrence in a row but the first."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, axis=1)
    again = np.zeros(candidates.shape, dtype=np.bool_)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated


def _first(candidates: Indices, kept: Mask, count: int) -> Indices:
    """The first ``count`` kept ones of each row, in their order, filled up with -1: ``[n, count]``."""
    order = np.argsort(~kept, axis=1, kind="stable")[:, :count]
    chosen = np.where(np.take_along_axis(kept, order, axis=1), np.take_along_axis(candidates, order, axis=1), -1)
    return np.pad(chosen, ((0, 0), (0, count - chosen.shape[1])), constant_values=-1)
