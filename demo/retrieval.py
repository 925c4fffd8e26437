"""Exact search by similarity, and how good it is where the one right document of each question is known."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# The metrics look no further.
DEPTH = 10


@dataclass(frozen=True)
class Quality:
    """Means over questions with one right document each."""

    recall_at_1: float
    recall_at_10: float
    mrr_at_10: float
    ndcg_at_10: float

    def named(self) -> dict[str, float]:
        """The metrics under the names that the field writes."""
        return {
            "recall@1": self.recall_at_1,
            "recall@10": self.recall_at_10,
            "mrr@10": self.mrr_at_10,
            "ndcg@10": self.ndcg_at_10,
        }


def nearest(questions: Matrix, documents: Matrix, depth: int = DEPTH) -> tuple[Indices, Matrix]:
    """The ``depth`` best documents of each question, best first: indices and similarities, both [questions, depth].

    ``questions`` [q, d] and ``documents`` [n, d] are of unit length. Of equals, the first document is the better.
    """
    similarities = questions @ documents.T
    best = np.argsort(-similarities, axis=1, kind="stable")[:, :depth]
    return best, np.take_along_axis(similarities, best, axis=1)


def ranks(questions: Matrix, documents: Matrix, right: Indices) -> Indices:
    """The rank [q], from 1, of each question's right document, ``right`` [q] being its row in ``documents``."""
    similarities = questions @ documents.T
    own = np.take_along_axis(similarities, right[:, None], axis=1)
    better: Indices = np.count_nonzero(similarities > own, axis=1)
    return better + 1


def quality(found: Indices) -> Quality:
    """What the ``found`` ranks [q] amount to. With one right document the ideal gain is 1, so nDCG is its discount."""
    near = found <= DEPTH
    return Quality(
        recall_at_1=float(np.mean(found == 1)),
        recall_at_10=float(np.mean(near)),
        mrr_at_10=float(np.mean(near / found)),
        ndcg_at_10=float(np.mean(near / np.log2(1 + found))),
    )
