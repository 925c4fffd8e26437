"""Texts as sets of words: what is the same question, what is nearly the same passage."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import regex
from scipy import sparse
from scipy.sparse.csgraph import connected_components

# Scripts that put no spaces between words (Thai, Lao, Myanmar, Khmer, kana, Han) count by character: else a sentence
# would be one word. Marks, such as the vowel signs of Hindi, belong to the letter before them.
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|[[\w\p{{M}}]--[{_SPACELESS}]]+", regex.V1)
# The same where there are no others, in less than half the time.
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
# Pairs that are compared at once: bounds the memory of a comparison to some hundred megabytes.
_PAIRS = 100_000
_ROWS = 1_000


def words(text: str) -> list[str]:
    """The words of ``text`` after NFKC and case folding; punctuation and white space only separate."""
    if text.isascii():
        return _ASCII_WORD.findall(text.casefold())
    found: list[str] = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found


def squeezed(text: str) -> str:
    """Equal for texts that differ in case, white space or form of their characters only: signs may be all that tells
    two pieces of code apart.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalized(text: str) -> str:
    """Equal for texts that differ in case, white space, punctuation or form of their characters only."""
    # A text without any word ("???") is told from others by its signs.
    return " ".join(words(text)) or unicodedata.normalize("NFKC", text).casefold().strip()


@dataclass(frozen=True)
class WordSets:
    """Row ``i`` of ``matrix`` ``[texts, vocabulary]`` has a one for each word of text ``i``; rarer words come first."""

    matrix: sparse.csr_array
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "WordSets":
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
        """Common words over words in all, for each pair of rows, ``[n]``; 0 for two empty sets."""
        count = len(self.sizes)
        pairs, where = np.unique(left * count + right, return_inverse=True)
        overlaps = np.zeros(len(pairs))
        for start in range(0, len(pairs), _PAIRS):
            one, other = np.divmod(pairs[start : start + _PAIRS], count)
            overlaps[start : start + _PAIRS] = self.matrix[one].multiply(self.matrix[other]).sum(axis=1)
        one, other = np.divmod(pairs, count)
        unions = self.sizes[one] + self.sizes[other] - overlaps
        return (overlaps / np.maximum(unions, 1))[where]

    def near_duplicates(self, threshold: float) -> npt.NDArray[np.int64]:
        """A label for each text, equal where a chain of pairs with a Jaccard similarity ≥ ``threshold`` joins them.

        Exact, by prefix filtering (Chaudhuri, Ganti, Kaushik 2006): sets that are so similar share one of their
        ``size - ⌈threshold · size⌉ + 1`` rarest words, so only pairs that do are compared.
        """
        count = len(self.sizes)
        joined = [
            pairs for block in self._sharing_rare_words(threshold) if (pairs := self._above(block, threshold)).size
        ]
        links = np.concatenate(joined) if joined else np.empty((0, 2), dtype=np.int64)
        graph = sparse.coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(count, count))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    def _sharing_rare_words(self, threshold: float) -> Iterator[npt.NDArray[np.int64]]:
        prefix = self.sizes - np.ceil(threshold * self.sizes - 1e-9).astype(np.int64) + 1
        position = np.arange(self.matrix.nnz) - np.repeat(self.matrix.indptr[:-1], self.sizes)
        rare = self.matrix.copy()
        rare.data = (position < np.repeat(prefix, self.sizes)).astype(np.float32)
        rare.eliminate_zeros()
        transposed = rare.T.tocsr()
        for start in range(0, len(self.sizes), _ROWS):
            block = (rare[start : start + _ROWS] @ transposed).tocoo()
            left, right = block.row.astype(np.int64) + start, block.col.astype(np.int64)
            yield np.stack([left, right], axis=1)[left < right]

    def _above(self, pairs: npt.NDArray[np.int64], threshold: float) -> npt.NDArray[np.int64]:
        sizes = self.sizes[pairs]
        pairs = pairs[sizes.min(axis=1) >= threshold * sizes.max(axis=1) - 1e-9]
        return pairs[self.jaccard(pairs[:, 0], pairs[:, 1]) >= threshold - 1e-9]
