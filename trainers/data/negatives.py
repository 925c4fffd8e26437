"""The negatives of each example: impressions, mined passages, random documents, and the passages of its batch.

Candidates that may be unlabelled positives (false negatives) are excluded; each exclusion rule has its own count.
"""

from collections import Counter
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foldtune.knobs import DatasetKnobs
from foldtune.pairs import MAX_IMPRESSIONS
from trainers.data.dataset import Dataset
from trainers.data.near_duplicates import NearPairs, WordSets
from trainers.data.search import similarity_tiles
from trainers.model.tokens import Indices

Mask = npt.NDArray[np.bool_]

# A mined passage that scores above this share of the question's lowest positive is likely a false negative
# (NV-Retriever, arXiv 2407.15831: 0.95 was best). Impressions are exempt: the agent saw them and cited another passage.
SCORE_MARGIN = 0.95
# Additional candidates, since some are excluded.
_SPARE = 8


@dataclass(frozen=True)
class Negatives:
    """``passages`` ``[examples, n]``, -1 where no candidate was left, and the number of exclusions by each rule."""

    passages: Indices
    counts: dict[str, int]


class CandidateDecision(IntEnum):
    """Whether a candidate is a negative, or the first rule that excluded it, in the order of the rules."""

    NEGATIVE = 0
    ABSENT = 1
    KNOWN_POSITIVE = 2
    SAME_PASSAGE_TWICE = 3
    NEAR_POSITIVE_BY_WORDS = 4
    ABOVE_SCORE_MARGIN = 5


# The rules that do not depend on the model's scores.
_MODEL_FREE_RULES = (
    CandidateDecision.KNOWN_POSITIVE,
    CandidateDecision.SAME_PASSAGE_TWICE,
    CandidateDecision.NEAR_POSITIVE_BY_WORDS,
)


@dataclass(frozen=True)
class Candidate:
    """A candidate for a hard negative; ``jaccard`` is its similarity to the positive, ``chosen`` whether it is used."""

    passage: int
    shown: bool
    score: float
    jaccard: float
    decision: CandidateDecision
    chosen: bool


@dataclass(frozen=True)
class NegativeSampler:
    """Chooses negatives for the examples ``rows`` of ``dataset``; ``sets`` are the word sets of its passages."""

    dataset: Dataset
    rows: Indices
    sets: WordSets
    knobs: DatasetKnobs

    def hard(self, queries: torch.Tensor, passages: torch.Tensor) -> Negatives:
        """Hard negatives ``[examples, hard]``: impressions first, then mined passages where these are too few.

        ``queries`` ``[questions, d]`` and ``passages`` ``[passages, d]`` are the current model's embeddings.
        """
        counts: Counter[str] = Counter()
        hard = np.empty((len(self.rows), 0), dtype=np.int64)
        if self.knobs.hard_negatives:
            candidates = self._candidates(queries, passages, counts)
            hard = _first(candidates, self._is_negative(candidates, counts), self.knobs.hard_negatives)
        counts["hard_impressions_and_mined"] = int((hard >= 0).sum())
        counts["hard_filled_with_easy"] = int((hard < 0).sum())
        return Negatives(hard, dict(counts))

    def with_easy(self, hard: Negatives, generator: np.random.Generator) -> Negatives:
        """``hard`` followed by random documents, which also replace missing hard ones: ``[examples, hard + easy]``."""
        width = self.knobs.hard_negatives + self.knobs.easy_negatives
        present = hard.passages >= 0
        missing = width - present.sum(axis=1)
        drawn = generator.integers(self.dataset.documents, size=(len(self.rows), 2 * width + _SPARE))
        candidates = np.concatenate([hard.passages, drawn], axis=1)
        decisions = self._decide(candidates)[:, hard.passages.shape[1] :]
        eligible = decisions == CandidateDecision.NEGATIVE
        # Draws after the last one that is needed are neither used nor counted.
        needed = np.cumsum(eligible, axis=1) - eligible < missing[:, None]
        chosen = _first(candidates, np.concatenate([present, eligible & needed], axis=1), width)
        counts = {f"easy_{rule.name.lower()}": int(((decisions == rule) & needed).sum()) for rule in _MODEL_FREE_RULES}
        return Negatives(chosen, hard.counts | counts | {"missing": int((chosen < 0).sum())})

    def excluded_in_batch(self, questions: Indices, passages: Indices) -> tuple[Mask, int]:
        """Which ``passages`` ``[m]`` of a batch, distinct and sorted, are no negatives of ``questions`` ``[b]``: their
        positives of any example, and what is near one of these by words; ``[b, m]``. And how many pairs the latter
        excludes.
        """
        dataset = self.dataset
        distinct, question_of = np.unique(questions, return_inverse=True)
        bounds = np.searchsorted(dataset.known_positives, np.stack([distinct, distinct + 1]) * len(dataset.passages))
        counts = bounds[1] - bounds[0]
        starts = np.cumsum(counts) - counts
        own = dataset.known_positives[np.arange(counts.sum()) + np.repeat(bounds[0] - starts, counts)]
        own %= len(dataset.passages)
        positives, row_of = np.unique(own, return_inverse=True)
        excluded = np.logical_or.reduceat(self._near.among(positives, passages)[row_of], starts)
        known = np.zeros_like(excluded)
        column = np.minimum(np.searchsorted(passages, own), len(passages) - 1)
        found = passages[column] == own
        known[np.repeat(np.arange(len(distinct)), counts)[found], column[found]] = True
        near = excluded & ~known
        return (excluded | known)[question_of], int(near[question_of].sum())

    @cached_property
    def _near(self) -> NearPairs:
        return NearPairs(self.sets, self.knobs.exclusion_threshold)

    @cached_property
    def needs_mining(self) -> bool:
        """Whether some example has too few hard negatives among its impressions; independent of the model."""
        if not self.knobs.hard_negatives:
            return False
        impressions = self._impressions(self.dataset.question[self.rows])
        negatives = self._is_negative(impressions, Counter()).sum(axis=1)
        return bool((negatives < self.knobs.hard_negatives).any())

    def decisions(self, row: int, queries: torch.Tensor, passages: torch.Tensor, depth: int) -> list[Candidate]:
        """The candidates for hard negatives of the example ``row``: its impressions, then the ``depth`` nearest
        documents; ``queries`` and ``passages`` are as in ``hard``.
        """
        question, positive = int(self.dataset.question[row]), int(self.dataset.positive[row])
        scores = (passages @ queries[question]).cpu().numpy()
        impressions = np.array(self.dataset.impressions[question][:MAX_IMPRESSIONS], dtype=np.int64)
        nearest = np.argsort(-scores[: self.dataset.documents], kind="stable")[:depth]
        candidates = np.concatenate([impressions, nearest])
        mined = np.arange(len(candidates)) >= len(impressions)
        decisions = replace(self, rows=np.array([row]))._decide(candidates[None])[0]
        too_near = scores[candidates] > _score_limit(self._lowest_positive(queries, passages)[question])
        excluded = mined & (decisions == CandidateDecision.NEGATIVE) & too_near
        decisions[excluded] = CandidateDecision.ABOVE_SCORE_MARGIN
        negative = decisions == CandidateDecision.NEGATIVE
        chosen = negative & (np.cumsum(negative) <= self.knobs.hard_negatives)
        jaccard = self.sets.jaccard(np.full_like(candidates, positive), candidates)
        return [
            Candidate(
                passage=int(candidate),
                shown=not mined[index],
                score=float(scores[candidate]),
                jaccard=float(jaccard[index]),
                decision=CandidateDecision(decisions[index]),
                chosen=bool(chosen[index]),
            )
            for index, candidate in enumerate(candidates)
        ]

    def _candidates(self, queries: torch.Tensor, passages: torch.Tensor, counts: Counter[str]) -> Indices:
        """Impressions, then the nearest documents below the score margin: ``[examples, candidates]``, -1 for none."""
        questions, question_of = np.unique(self.dataset.question[self.rows], return_inverse=True)
        impressions = self._impressions(questions)
        if not self.needs_mining:
            return impressions[question_of]
        lowest = self._lowest_positive(queries, passages)[questions]
        depth = min(self.dataset.documents, 2 * self.knobs.hard_negatives + _SPARE)
        mined, above = nearest_below_margin(queries[questions], passages[: self.dataset.documents], lowest, depth)
        # All positives are above the margin; they are not counted as excluded negatives.
        known_questions, positives = self.dataset.known_pairs()
        own = int((np.isin(known_questions, questions) & (positives < self.dataset.documents)).sum())
        counts["above_score_margin"] = above - own
        return np.concatenate([impressions, mined], axis=1)[question_of]

    def _impressions(self, questions: Indices) -> Indices:
        """Impressions of each question, the highest ranked first: ``[questions, most]``, -1 for none."""
        rows = [self.dataset.impressions[question][:MAX_IMPRESSIONS] for question in questions]
        width = max(map(len, rows), default=0)
        padded = [[*row, *[-1] * (width - len(row))] for row in rows]
        return np.array(padded, dtype=np.int64).reshape(len(rows), width)

    def _lowest_positive(self, queries: torch.Tensor, passages: torch.Tensor) -> npt.NDArray[np.float32]:
        """The lowest score of each question's known positives ``[questions]``, infinite without any."""
        questions, positives = self.dataset.known_pairs()
        scores = (queries[questions] * passages[positives]).sum(dim=1).cpu().numpy()
        lowest = np.full(len(queries), np.inf, dtype=np.float32)
        np.minimum.at(lowest, questions, scores)
        return lowest

    def _is_negative(self, candidates: Indices, counts: Counter[str]) -> Mask:
        """Which candidates are negatives ``[examples, n]``; adds the exclusions of each rule to ``counts``."""
        decisions = self._decide(candidates)
        for rule in _MODEL_FREE_RULES:
            counts[rule.name.lower()] += int((decisions == rule).sum())
        return np.asarray(decisions == CandidateDecision.NEGATIVE)

    def _decide(self, candidates: Indices) -> npt.NDArray[np.int8]:
        """The ``CandidateDecision`` on each candidate ``[examples, n]`` by the rules that need no model, in order."""
        questions = self.dataset.question[self.rows][:, None]
        positives = self.dataset.positive[self.rows][:, None]
        decisions = np.where(candidates >= 0, CandidateDecision.NEGATIVE, CandidateDecision.ABSENT).astype(np.int8)

        def exclude(matches: Mask, rule: CandidateDecision) -> None:
            decisions[(decisions == CandidateDecision.NEGATIVE) & matches] = rule

        exclude(self.dataset.is_known_positive(questions, candidates), CandidateDecision.KNOWN_POSITIVE)
        exclude(_is_repeated(candidates), CandidateDecision.SAME_PASSAGE_TWICE)
        # Jaccard is the expensive rule: computed only for candidates that passed the others.
        remaining = decisions == CandidateDecision.NEGATIVE
        pairs = np.broadcast_to(positives, candidates.shape)[remaining], candidates[remaining]
        near = np.zeros_like(remaining)
        near[remaining] = self.sets.jaccard(*pairs) >= self.knobs.exclusion_threshold
        exclude(near, CandidateDecision.NEAR_POSITIVE_BY_WORDS)
        return decisions


def nearest_below_margin(
    queries: torch.Tensor, passages: torch.Tensor, lowest_positive: npt.NDArray[np.float32], depth: int
) -> tuple[Indices, int]:
    """The ``depth`` nearest passages of each query below its score margin ``[n, depth]``, nearest first, -1 where fewer
    are left; and the number of passages above the margins.

    Exact, in tiles of bounded memory. ``queries`` are ``[n, d]``, ``passages`` ``[m, d]``, ``lowest_positive`` ``[n]``.
    """
    limits = torch.from_numpy(_score_limit(lowest_positive)).to(queries).unsqueeze(1)
    fetched = min(len(passages), 2 * depth)
    neighbours, above = np.empty((len(queries), depth), dtype=np.int64), 0
    for part, scores in similarity_tiles(queries, passages):
        limit = limits[part]
        values, indices = scores.topk(fetched, dim=1)
        skipped = (values > limit).sum(dim=1, keepdim=True)
        ranks = skipped + torch.arange(depth, device=indices.device)
        nearest = torch.nn.functional.pad(indices, (0, depth), value=-1).gather(1, ranks)
        # A second pass over all scores takes as long as computing them: only for queries with so many above the margin
        # that the first ``fetched`` do not suffice.
        again = (skipped.squeeze(1) + depth > fetched).nonzero().squeeze(1)
        if fetched < len(passages) and len(again):
            too_near = scores[again] > limit[again]
            skipped[again] = too_near.sum(dim=1, keepdim=True)
            values, indices = scores[again].masked_fill_(too_near, -torch.inf).topk(depth, dim=1)
            nearest[again] = indices.masked_fill(values == -torch.inf, -1)
        above += int(skipped.sum())
        neighbours[part] = nearest.cpu().numpy()
    return neighbours, above


def _score_limit(lowest_positive: Any) -> Any:
    """The highest score of a mined negative; below the positive's score even if that is negative."""
    return lowest_positive - (1 - SCORE_MARGIN) * np.abs(lowest_positive)


def _is_repeated(candidates: Indices) -> Mask:
    """True for every occurrence in a row but the first."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, axis=1)
    equals_previous = np.zeros(candidates.shape, dtype=np.bool_)
    equals_previous[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(equals_previous)
    np.put_along_axis(repeated, order, equals_previous, axis=1)
    return repeated


def _first(candidates: Indices, eligible: Mask, count: int) -> Indices:
    """The first ``count`` eligible candidates of each row, in order, padded with -1: ``[n, count]``."""
    order = np.argsort(~eligible, axis=1, kind="stable")[:, :count]
    chosen = np.where(np.take_along_axis(eligible, order, axis=1), np.take_along_axis(candidates, order, axis=1), -1)
    return np.pad(chosen, ((0, 0), (0, count - chosen.shape[1])), constant_values=-1)
