"""Near-duplicate texts: normalization for exact duplicates, Jaccard similarity of word sets for near ones."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import regex
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from foldtune.spellings import nfc

# Scripts without spaces between words (Thai, Lao, Myanmar, Khmer, kana, Han) are split into characters: else a sentence
# would be one word. Combining marks, such as the vowel signs of Hindi, belong to the letter before them.
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|[[\w\p{{M}}]--[{_SPACELESS}]]+", regex.V1)
# Equivalent on ASCII, in less than half the time.
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
# A sign on its own is a word (&&, !!, ??), and some make another word of one: C++, C#, 10².
_WORD_OR_SIGN = regex.compile(
    rf"(?<!\S)[^\s\w\p{{M}}\p{{N}}]+(?!\S)|[{_SPACELESS}]\p{{M}}*|[[\w\p{{M}}\p{{N}}\p{{S}}#&%*@]--[{_SPACELESS}]]+",
    regex.V1,
)
# The end of a sentence: not "!" alone, which may be a factorial, nor stops on their own, as in "cd ..". Matched from
# the right, so in linear time.
_STOPS = ".\uff0e\u3002…"
_QUESTION_MARK = rf"[\p{{Sentence_Terminal}}--[!\uff01{_STOPS}]]"
_SENTENCE_END = regex.compile(
    rf"(?r)(?:(?<=[^\s{_STOPS}])[{_STOPS}]+)?(?:\s*{_QUESTION_MARK}[!\uff01\s{_QUESTION_MARK}]*)?$", regex.V1
)
_STRAIGHT_QUOTES = str.maketrans("\u2018\u2019\u02bc\u201c\u201d", "'''\"\"")
# With this many for each word of a text of average length, few texts seem to have more in common than they have.
_BUCKETS_PER_WORD = 8
# Pairs compared at once, and texts whose pairs are enumerated at once: bounds memory to some hundred megabytes.
_PAIR_BLOCK = 100_000
_ROW_BLOCK = 1_000


def words(text: str) -> list[str]:
    """The words of ``text`` after NFC and case folding; signs, punctuation and white space are separators."""
    if text.isascii():
        return _ASCII_WORD.findall(text.casefold())
    matches: list[str] = _WORD.findall(_fold(text))
    return matches


def words_and_signs(text: str) -> list[str]:
    """Like ``words``; signs count, since they may be all in which two questions differ."""
    matches: list[str] = _WORD_OR_SIGN.findall(_fold(text))
    return matches


def normalize_passage(text: str) -> str:
    """Equal for passages that differ only in case, white space or canonical form. Punctuation counts: it may be all in
    which two pieces of code differ.
    """
    return " ".join(_fold(text).split())


def normalize_question(text: str) -> str:
    """Equal for questions that differ only in case, white space, canonical form, curly quotes, or the question mark or
    full stop at their end. Any other sign may be the point of the question.
    """
    folded = normalize_passage(text).translate(_STRAIGHT_QUOTES)
    return _SENTENCE_END.sub("", folded, count=1).lstrip("¿¡ ") or folded


def _fold(text: str) -> str:
    # Case folding may decompose again.
    return nfc(nfc(text).casefold())


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
