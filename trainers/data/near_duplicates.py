"""Near-duplicate texts, by the Jaccard similarity of their word sets."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from foldtune.texts import words

# With this many for each word of a text of average length, few texts seem to have more in common than they have.
_BUCKETS_PER_WORD = 8
# Pairs compared at once, and texts whose pairs are enumerated at once: bounds memory to some hundred megabytes.
_PAIR_BLOCK = 100_000
_ROW_BLOCK = 1_000


@dataclass(frozen=True)
class WordSets:
    """Row ``i`` of the binary ``matrix`` ``[texts, vocabulary]`` is the set of words of text ``i``, rarest word first;
    ``sizes`` ``[texts]`` are their numbers of words.
    """

    matrix: sparse.csr_array
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str], words: Callable[[str], list[str]] = words) -> "WordSets":
        """The word sets of ``texts``."""
        vocabulary: defaultdict[str, int] = defaultdict()
        vocabulary.default_factory = vocabulary.__len__
        rows = [list(map(vocabulary.__getitem__, dict.fromkeys(words(text)))) for text in texts]
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        columns = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(sizes.sum()))
        frequency = np.bincount(columns, minlength=len(vocabulary))
        by_rarity = np.empty(len(vocabulary), dtype=np.int64)
        by_rarity[np.argsort(frequency, kind="stable")] = np.arange(len(vocabulary))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        ones = np.ones(len(columns), dtype=np.float32)
        matrix = sparse.csr_array((ones, by_rarity[columns], starts), shape=(len(rows), max(1, len(vocabulary))))
        matrix.sort_indices()
        return cls(matrix, sizes)

    def jaccard(self, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Jaccard similarity of each pair of texts: words in common over words in both. All arrays are ``[n]``.

        It is 0 for two empty sets.
        """
        count = len(self.sizes)
        pairs, pair_of = np.unique(left * count + right, return_inverse=True)
        overlaps = np.zeros(len(pairs))
        for start in range(0, len(pairs), _PAIR_BLOCK):
            left, right = np.divmod(pairs[start : start + _PAIR_BLOCK], count)
            overlaps[start : start + _PAIR_BLOCK] = self.matrix[left].multiply(self.matrix[right]).sum(axis=1)
        left, right = np.divmod(pairs, count)
        unions = self.sizes[left] + self.sizes[right] - overlaps
        return (overlaps / np.maximum(unions, 1))[pair_of]

    def near_duplicates(self, threshold: float) -> npt.NDArray[np.int64]:
        """A group label for each text ``[texts]``: the connected components of the graph of all pairs with a Jaccard
        similarity ≥ ``threshold``.

        Exact, by prefix filtering (Chaudhuri, Ganti, Kaushik 2006): two such sets share one of their
        ``size - ⌈threshold · size⌉ + 1`` rarest words, so only pairs that do are compared.
        """
        count = len(self.sizes)
        blocks = [
            pairs for block in self._candidate_pairs(threshold) if (pairs := self._similar_pairs(block, threshold)).size
        ]
        edges = np.concatenate(blocks) if blocks else np.empty((0, 2), dtype=np.int64)
        graph = sparse.coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    def _candidate_pairs(self, threshold: float) -> Iterator[npt.NDArray[np.int64]]:
        """Blocks ``[n, 2]`` of all pairs that share a word of their prefixes."""
        prefix = self.sizes - np.ceil(threshold * self.sizes - 1e-9).astype(np.int64) + 1
        position = np.arange(self.matrix.nnz) - np.repeat(self.matrix.indptr[:-1], self.sizes)
        rare = self.matrix.copy()
        rare.data = (position < np.repeat(prefix, self.sizes)).astype(np.float32)
        rare.eliminate_zeros()
        transposed = rare.T.tocsr()
        for start in range(0, len(self.sizes), _ROW_BLOCK):
            block = (rare[start : start + _ROW_BLOCK] @ transposed).tocoo()
            left, right = block.row.astype(np.int64) + start, block.col.astype(np.int64)
            yield np.stack([left, right], axis=1)[left < right]

    def _similar_pairs(self, pairs: npt.NDArray[np.int64], threshold: float) -> npt.NDArray[np.int64]:
        sizes = self.sizes[pairs]
        pairs = pairs[sizes.min(axis=1) >= threshold * sizes.max(axis=1) - 1e-9]
        return pairs[self.jaccard(pairs[:, 0], pairs[:, 1]) >= threshold - 1e-9]


class NearPairs:
    """Which of some texts are as similar as ``threshold``, without comparing all of them word by word.

    Words are counted in buckets: what two texts have in common there is no less than their common words. A bucket is
    shared by words of all degrees of rarity, so the most frequent ones, which nearly all texts have, are told apart.
    """

    def __init__(self, sets: WordSets, threshold: float) -> None:
        self._sets, self._threshold = sets, threshold
        self._buckets = max(1, _BUCKETS_PER_WORD * round(float(sets.sizes.mean())))

    def among(self, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the Jaccard similarity of a text of ``left`` ``[n]`` and one of ``right`` ``[m]`` is at or above the
        threshold: ``[n, m]``.
        """
        # Of a union of u words, threshold · u are in common; u is what both have, less what they have in common.
        needed = self._threshold / (1 + self._threshold) * np.add.outer(self._sets.sizes[left], self._sets.sizes[right])
        near = (self._counts(left) @ self._counts(right).T).numpy() >= needed - 1e-3
        i, j = near.nonzero()
        near[i, j] = self._sets.jaccard(left[i], right[j]) >= self._threshold
        return near

    def _counts(self, texts: npt.NDArray[np.int64]) -> torch.Tensor:
        """Words by bucket, ``[texts, buckets]``."""
        rows = self._sets.matrix[texts]
        buckets = np.repeat(np.arange(len(texts)), self._sets.sizes[texts]) * self._buckets
        buckets += rows.indices % self._buckets
        counts = np.bincount(buckets, minlength=len(texts) * self._buckets)
        return torch.from_numpy(counts.astype(np.float32).reshape(len(texts), self._buckets))
