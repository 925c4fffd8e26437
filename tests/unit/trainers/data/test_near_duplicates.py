"""Normalization, Jaccard similarity and near-duplicate groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.near_duplicates import WordSets, normalize_question, words


def test_questions_are_normalized() -> None:
    assert normalize_question("  Where IS the \uff46erry?!") == normalize_question("where is, the ferry")
    assert normalize_question("???") != normalize_question("!!!")
    assert words("渡し船 ferry") == ["渡", "し", "船", "ferry"]
    assert words("हिन्दी में पासवर्ड") == ["हिन्दी", "में", "पासवर्ड"]
    assert words("น้ำ pin") == [*words("น้ำ"), "pin"]
    assert len(words("น้ำ")) == 2
    # Pure ASCII has a faster path of its own.
    ascii_text = "".join(map(chr, range(128))) + " don't self.x_1 A-B"
    assert words(f"{ascii_text} é")[:-1] == words(ascii_text)


@given(st.lists(st.text("abc ", max_size=14), max_size=12), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_near_duplicates_equal_the_comparison_of_all_pairs(texts: list[str], threshold: float) -> None:
    sets = [set(words(text)) for text in texts]
    labels = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            union = sets[i] | sets[j]
            if union and len(sets[i] & sets[j]) / len(union) >= threshold - 1e-9:
                merged = labels[j]
                labels = [labels[i] if label == merged else label for label in labels]
    groups = WordSets.of(texts).near_duplicates(threshold)
    for i in range(len(texts)):
        for j in range(i):
            assert (labels[i] == labels[j]) == (groups[i] == groups[j])


@pytest.mark.slow
def test_blockwise_jaccard_similarities() -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(3000, size=40)) for _ in range(2000)]
    sets = WordSets.of(texts)
    pairs = generator.integers(2000, size=(2, 300_000))
    similarities = sets.jaccard(pairs[0], pairs[1])
    left, right = set(texts[pairs[0, 7]].split()), set(texts[pairs[1, 7]].split())
    assert similarities[7] == len(left & right) / len(left | right)
