"""Search of embedded documents, and its metrics where the one right document of each question is known."""

import numpy as np
import torch

from trainers.data.search import nearest
from trainers.evaluation.metrics import CUTOFF, ndcg, recall, reciprocal_rank
from trainers.model.encoder import Embeddings
from trainers.model.tokens import Indices


def search(questions: Embeddings, documents: Embeddings, depth: int = CUTOFF) -> tuple[Indices, Embeddings]:
    """The ``depth`` nearest documents of each question, nearest first: rows and similarities, both [questions, depth].

    ``questions`` [q, d] and ``documents`` [n, d] are of unit length.
    """
    rows = nearest(torch.from_numpy(questions), torch.from_numpy(documents), min(depth, len(documents)))
    return rows, np.einsum("qd,qkd->qk", questions, documents[rows])


def ranks(questions: Embeddings, documents: Embeddings, right: Indices) -> Indices:
    """The rank [q], from 1, of each question's right document, ``right`` [q] being its row in ``documents``."""
    similarities = questions @ documents.T
    own = np.take_along_axis(similarities, right[:, None], axis=1)
    better: Indices = np.count_nonzero(similarities > own, axis=1)
    return better + 1


def mean_metrics(ranks: Indices) -> dict[str, float]:
    """Means over questions whose one right document is at ``ranks`` [q], by the usual names."""
    hits = ranks[:, None] == np.arange(1, CUTOFF + 1)
    relevant = np.ones(len(ranks), dtype=np.int64)
    return {
        "recall@1": float(recall(hits, relevant, 1).mean()),
        "recall@10": float(recall(hits, relevant, 10).mean()),
        "mrr@10": float(reciprocal_rank(hits).mean()),
        "ndcg@10": float(ndcg(hits, relevant).mean()),
    }
