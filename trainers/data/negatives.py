"""Which passages a question is taught to stay away from: shown but not cited, mined with the model, and random ones.

What could be an answer is taken out again, each reason with its own count.
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
from trainers.data.dataset import Dataset
from trainers.data.similarity import tiles
from trainers.data.words import WordSets

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# A mined passage that scores above this share of the question's lowest positive is as likely an unlabelled answer
# (NV-Retriever, arXiv 2407.15831: 0.95 was best). An impression is spared: the agent had it and cited another.
SCORE_MARGIN = 0.95
# Some mined passages fall to the filters, so more are fetched than are asked for.
_SPARE = 8
# Impressions are pooled over all logs of a question; the first ones are those that were ranked highest.
_MAX_IMPRESSIONS = 64


@dataclass(frozen=True)
class Negatives:
    """``passages`` of each example, -1 where nothing was left, and how many candidates each filter took."""

    passages: Indices
    counts: dict[str, int]


class Verdict(IntEnum):
    """What becomes of a candidate; the filters in the order in which they are asked."""

    NEGATIVE = 0
    ABSENT = 1
    KNOWN_POSITIVE = 2
    SAME_PASSAGE_TWICE = 3
    NEAR_POSITIVE_BY_WORDS = 4
    ABOVE_SCORE_MARGIN = 5


# Those that look at passages and not at the model.
_FILTERS = (Verdict.KNOWN_POSITIVE, Verdict.SAME_PASSAGE_TWICE, Verdict.NEAR_POSITIVE_BY_WORDS)


@dataclass(frozen=True)
class Candidate:
    """A passage that may be a hard negative; ``jaccard`` is that with the positive."""

    passage: int
    shown: bool
    score: float
    jaccard: float
    verdict: Verdict
    chosen: bool


@dataclass(frozen=True)
class NegativeSource:
    """What negatives are chosen from, for the examples ``rows`` of ``dataset``."""

    dataset: Dataset
    rows: Indices
    sets: WordSets
    knobs: DatasetKnobs

    def hard(self, queries: torch.Tensor, passages: torch.Tensor) -> Negatives:
        """Hard negatives ``[examples, hard]``: impressions first, then mined where these are too few.

        ``queries`` ``[questions, d]`` and ``passages`` ``[passages, d]`` are the current model's embeddings.
        """
        counts: Counter[str] = Counter()
        wanted = self.knobs.hard_negatives
        found = np.empty((len(self.rows), 0), dtype=np.int64)
        if wanted:
            candidates = self._candidates(queries, passages, counts)
            found = _first(candidates, self._kept(candidates, counts), wanted)
        counts["hard_impressions_and_mined"] = int((found >= 0).sum())
        counts["hard_filled_with_easy"] = int((found < 0).sum())
        return Negatives(found, dict(counts))

    def with_easy(self, hard: Negatives, generator: np.random.Generator) -> Negatives:
        """``hard`` and easy ones beside it, also in place of what is missing there: ``[examples, hard + easy]``."""
        width = self.knobs.hard_negatives + self.knobs.easy_negatives
        found = hard.passages >= 0
        wanted = width - found.sum(axis=1)
        drawn = generator.integers(self.dataset.documents, size=(len(self.rows), 2 * width + _SPARE))
        both = np.concatenate([hard.passages, drawn], axis=1)
        verdicts = self._verdicts(both)[:, hard.passages.shape[1] :]
        kept = verdicts == Verdict.NEGATIVE
        # Later draws are not needed, whatever they are.
        needed = np.cumsum(kept, axis=1) - kept < wanted[:, None]
        chosen = _first(both, np.concatenate([found, kept & needed], axis=1), width)
        counts = {f"easy_{verdict.name.lower()}": int(((verdicts == verdict) & needed).sum()) for verdict in _FILTERS}
        return Negatives(chosen, hard.counts | counts | {"missing": int((chosen < 0).sum())})

    @cached_property
    def wants_mining(self) -> bool:
        """Whether what was shown gives some example too few hard negatives; the same whatever the model."""
        if not self.knobs.hard_negatives:
            return False
        ignored: Counter[str] = Counter()
        shown = self._shown(self.dataset.question[self.rows])
        return bool((self._kept(shown, ignored).sum(axis=1) < self.knobs.hard_negatives).any())

    def _shown(self, questions: Indices) -> Indices:
        """Impressions, the highest ranked first: ``[questions, most]``, -1 for none."""
        shown = [self.dataset.impressions[question][:_MAX_IMPRESSIONS] for question in questions]
        width = max(map(len, shown), default=0)
        padded = [[*row, *[-1] * (width - len(row))] for row in shown]
        return np.array(padded, dtype=np.int64).reshape(len(shown), width)

    def _candidates(self, queries: torch.Tensor, passages: torch.Tensor, counts: Counter[str]) -> Indices:
        """Impressions, then what the model ranks highest below the margin: ``[examples, candidates]``, -1 for none."""
        questions, of_row = np.unique(self.dataset.question[self.rows], return_inverse=True)
        shown = self._shown(questions)
        if not self.wants_mining:
            return shown[of_row]
        lowest = self._lowest_positive(queries, passages)[questions]
        depth = min(self.dataset.documents, 2 * self.knobs.hard_negatives + _SPARE)
        mined, above = hardest(queries[questions], passages[: self.dataset.documents], lowest, depth)
        # All positives are above it, and are no negatives that were taken out.
        asked, positives = self.dataset.known_pairs()
        own = int((np.isin(asked, questions) & (positives < self.dataset.documents)).sum())
        counts["above_score_margin"] = above - own
        return np.concatenate([shown, mined], axis=1)[of_row]

    def _lowest_positive(self, queries: torch.Tensor, passages: torch.Tensor) -> npt.NDArray[np.float32]:
        questions, positives = self.dataset.known_pairs()
        scores = (queries[questions] * passages[positives]).sum(dim=1).cpu().numpy()
        lowest = np.full(len(queries), np.inf, dtype=np.float32)
        np.minimum.at(lowest, questions, scores)
        return lowest

    def _kept(self, candidates: Indices, counts: Counter[str]) -> Mask:
        """Which candidates are negatives; the first filter that takes one counts it."""
        verdicts = self._verdicts(candidates)
        for verdict in _FILTERS:
            counts[verdict.name.lower()] += int((verdicts == verdict).sum())
        return np.asarray(verdicts == Verdict.NEGATIVE)

    def _verdicts(self, candidates: Indices) -> npt.NDArray[np.int8]:
        """A ``Verdict`` on each candidate ``[examples, n]``, by the filters in their order."""
        positives = self.dataset.positive[self.rows][:, None]
        verdicts = np.where(candidates >= 0, Verdict.NEGATIVE, Verdict.ABSENT).astype(np.int8)

        def judge(found: Mask, verdict: Verdict) -> None:
            verdicts[(verdicts == Verdict.NEGATIVE) & found] = verdict

        judge(
            self.dataset.is_known_positive(self.dataset.question[self.rows][:, None], candidates),
            Verdict.KNOWN_POSITIVE,
        )
        judge(_repeated(candidates), Verdict.SAME_PASSAGE_TWICE)
        left = verdicts == Verdict.NEGATIVE
        near = np.zeros_like(left)
        pairs = np.broadcast_to(positives, candidates.shape)[left]
        near[left] = self.sets.jaccard(pairs, candidates[left]) >= self.knobs.exclusion_threshold
        judge(near, Verdict.NEAR_POSITIVE_BY_WORDS)
        return verdicts

    def explain(self, queries: torch.Tensor, passages: torch.Tensor, depth: int) -> list[Candidate]:
        """What becomes of the candidates of the first example: what was shown, then the ``depth`` nearest documents.

        ``queries`` and ``passages`` are as in ``hard``.
        """
        row = self.rows[:1]
        alone = replace(self, rows=row)
        question, positive = int(self.dataset.question[row[0]]), int(self.dataset.positive[row[0]])
        scores = (passages @ queries[question]).cpu().numpy()
        shown = np.array(self.dataset.impressions[question][:_MAX_IMPRESSIONS], dtype=np.int64)
        nearest = np.argsort(-scores[: self.dataset.documents], kind="stable")[:depth]
        candidates = np.concatenate([shown, nearest])
        verdicts = alone._verdicts(candidates[None])[0]
        limit = _limit(self._lowest_positive(queries, passages)[question])
        mined = np.arange(len(candidates)) >= len(shown)
        verdicts[mined & (verdicts == Verdict.NEGATIVE) & (scores[candidates] > limit)] = Verdict.ABOVE_SCORE_MARGIN
        chosen = (verdicts == Verdict.NEGATIVE) & (np.cumsum(verdicts == Verdict.NEGATIVE) <= self.knobs.hard_negatives)
        likeness = self.sets.jaccard(np.full_like(candidates, positive), candidates)
        return [
            Candidate(
                passage=int(candidate),
                shown=not mined[place],
                score=float(scores[candidate]),
                jaccard=float(likeness[place]),
                verdict=Verdict(verdicts[place]),
                chosen=bool(chosen[place]),
            )
            for place, candidate in enumerate(candidates)
        ]


def hardest(
    queries: torch.Tensor, passages: torch.Tensor, lowest_positive: npt.NDArray[np.float32], depth: int
) -> tuple[Indices, int]:
    """The ``depth`` nearest passages below the score margin of each query, nearest first; and how many lay above it.

    Exact. The similarities are made in tiles of bounded size, never ``[n, m]`` at once. -1 where fewer are left.
    """
    limits = torch.from_numpy(_limit(lowest_positive)).to(queries).unsqueeze(1)
    fetched = min(len(passages), 2 * depth)
    found, above = np.empty((len(queries), depth), dtype=np.int64), 0
    for part, scores in tiles(queries, passages):
        limit = limits[part]
        values, indices = scores.topk(fetched, dim=1)
        spared = (values > limit).sum(dim=1, keepdim=True)
        places = spared + torch.arange(depth, device=indices.device)
        nearest = torch.nn.functional.pad(indices, (0, depth), value=-1).gather(1, places)
        # To look at all scores twice takes as long as to make them: done only where so many lie above the margin.
        again = (spared.squeeze(1) + depth > fetched).nonzero().squeeze(1)
        if fetched < len(passages) and len(again):
            too_near = scores[again] > limit[again]
            spared[again] = too_near.sum(dim=1, keepdim=True)
            values, indices = scores[again].masked_fill_(too_near, -torch.inf).topk(depth, dim=1)
            nearest[again] = indices.masked_fill(values == -torch.inf, -1)
        above += int(spared.sum())
        found[part] = nearest.cpu().numpy()
    return found, above


def _limit(lowest_positive: Any) -> Any:
    """The score above which a mined passage is spared; below the positive's for negative scores too."""
    return lowest_positive - (1 - SCORE_MARGIN) * np.abs(lowest_positive)


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
