"""Retrieval metrics on questions: recall@k, MRR@10 and nDCG@10."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from foldtune.events import RetrievalMetrics
from trainers.data.dataset import Dataset
from trainers.data.search import nearest
from trainers.model.tokens import Indices

Floats = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]

CUTOFF = 10
# A reranker sees that many passages.
DEEP = (50, 100)
DEPTH = max(DEEP)
# A mean over fewer questions of a folder is not significant, and would reveal the result of single questions.
MIN_FOLDER_QUESTIONS = 5


@dataclass(frozen=True)
class Evaluation:
    """Metrics of each question, all ``[n]``; recall@k for each k up to ``CUTOFF``, and those of ``DEEP``.

    ``groups`` are the questions' near-duplicate groups, ``documents`` is the number of passages searched.
    """

    recall: dict[int, Floats]
    reciprocal_rank: Floats
    ndcg: Floats
    groups: Indices
    documents: int

    def subset(self, rows: Indices) -> "Evaluation":
        """The evaluation of some of the questions, by their rows in the arrays."""
        return replace(
            self,
            recall={k: values[rows] for k, values in self.recall.items()},
            reciprocal_rank=self.reciprocal_rank[rows],
            ndcg=self.ndcg[rows],
            groups=self.groups[rows],
        )

    def recall_curve(self) -> list[float]:
        """Mean recall@1, recall@2 … up to the cutoff."""
        return [float(self.recall[k].mean()) for k in range(1, CUTOFF + 1)]

    def metrics(self) -> RetrievalMetrics:
        """Means over the questions."""
        return RetrievalMetrics(
            recall_at_1=float(self.recall[1].mean()),
            recall_at_5=float(self.recall[5].mean()),
            recall_at_10=float(self.recall[10].mean()),
            recall_at_50=float(self.recall[50].mean()),
            recall_at_100=float(self.recall[100].mean()),
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
    *,
    distractors: torch.Tensor | None = None,
) -> Evaluation:
    """Search all searchable passages for each held-out question; every known positive is relevant.

    ``queries`` ``[held_out, d]`` and ``passages`` ``[searchable, d]`` are embeddings. With ``candidates`` ``[n]`` only
    these passages are searched, and ``passages`` ``[n, d]`` are their embeddings. ``distractors`` ``[m, d]`` are
    searched too, and are right for no question.
    """
    searched = passages if distractors is None else torch.cat([passages, distractors])
    retrieved = nearest(queries, searched, DEPTH)
    retrieved = np.where(retrieved < len(passages), retrieved, -1)
    if candidates is not None:
        retrieved = np.where(retrieved >= 0, candidates[retrieved], -1)
    hits = dataset.is_known_positive(held_out[:, None], retrieved)
    questions, _ = dataset.known_pairs()
    relevant = np.searchsorted(questions, held_out, side="right") - np.searchsorted(questions, held_out, side="left")
    return evaluation(hits, relevant, dataset.groups[held_out], len(searched))


def evaluation(hits: Hits, relevant: Indices, groups: Indices, documents: int) -> Evaluation:
    """The metrics of ``hits`` ``[n, DEPTH]``, of which each question has ``relevant`` ``[n]`` at best."""
    first = hits[:, :CUTOFF]
    return Evaluation(
        recall={k: recall(hits, relevant, k) for k in (*range(1, CUTOFF + 1), *DEEP)},
        reciprocal_rank=reciprocal_rank(first),
        ndcg=ndcg(first, relevant),
        groups=groups,
        documents=documents,
    )


def recall(hits: Hits, relevant: Indices, k: int) -> Floats:
    """Recall@k ``[n]``: hits ``[n, ranks]`` in the first k ranks over the number of ``relevant`` passages ``[n]``."""
    return np.asarray(hits[:, :k].sum(axis=1) / relevant)


def reciprocal_rank(hits: Hits) -> Floats:
    """1 / rank of the first hit ``[n]``, 0 without one; ``hits`` ``[n, ranks]``. Its mean is MRR."""
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def ndcg(hits: Hits, relevant: Indices) -> Floats:
    """Binary nDCG ``[n]`` (Järvelin and Kekäläinen 2002): Σ 1 / log2(rank + 1) over the hits ``[n, ranks]``, divided by
    its value for the ideal ranking of the ``relevant`` ``[n]`` passages.
    """
    discounts = 1 / np.log2(np.arange(hits.shape[1]) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    return np.asarray((hits * discounts).sum(axis=1) / ideal[np.minimum(relevant, hits.shape[1])])
