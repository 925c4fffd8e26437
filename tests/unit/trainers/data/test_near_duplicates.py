"""Normalization, Jaccard similarity and near-duplicate groups."""

from random import Random
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldtune.texts import normalize_passage, normalize_question, words, words_and_signs
from trainers.data.near_duplicates import (
    NearPairs,
    WordSets,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("  Where IS the\n ferry?", "where is the ferry"),
        ("where is the ferry", "Where is the ferry ?!"),
        ("Tell me more.", "tell me more…"),
        ("¿Dónde está?", "do\u0301nde esta\u0301"),
        ("渡し船はどこ\uff1f", "渡し船はどこ"),
        ("what\u2019s \u201cit\u201d", 'What\'s "it"?'),
    ],
)
def test_a_question_is_the_same_in_another_spelling(one: str, other: str) -> None:
    assert normalize_question(one) == normalize_question(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What does && do?", "What does || do?"),
        ("What is C?", "What is C++?"),
        ("What is C++?", "What is C#?"),
        ("What is NET?", "What is .NET?"),
        ("Why is 5 > 3?", "Why is 5 < 3?"),
        ("What is -5?", "What is 5?"),
        ("What is 5!", "What is 5?"),
        ("What is 10²?", "What is 102?"),
        ("What does cd .. do?", "What does cd . do?"),
        ("What does cd ..?", "What does cd . ?"),
        ("???", "!!!"),
    ],
)
def test_signs_tell_questions_apart(one: str, other: str) -> None:
    assert normalize_question(one) != normalize_question(other)


def test_signs_tell_groups_of_questions_apart() -> None:
    signs = ["What does && do?", "What does || do?", "What does ! do?", "What does !! do?", "What does [[ ]] do?"]
    questions = [*signs, "What is C?", "What is C++?", "What is C#?", "Why (is) it, so?"]
    assert len(set(WordSets.of(questions, words_and_signs).near_duplicates(0.8))) == len(questions)
    assert words_and_signs("why (is) it, so?") == ["why", "is", "it", "so"]
    assert words_and_signs("C++ 渡し && 10²") == ["c++", "渡", "し", "&&", "10²"]


def test_passages_that_differ_in_an_exponent_are_not_the_same() -> None:
    assert normalize_passage("10² m") != normalize_passage("102 m")
    assert normalize_passage("Cafe\u0301") == normalize_passage("café")


def test_words_of_any_script() -> None:
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


def jaccard(one: str, other: str) -> float:
    left, right = set(words(one)), set(words(other))
    return len(left & right) / max(1, len(left | right))


@given(
    st.lists(st.text("abcdef ", max_size=16), min_size=1, max_size=12),
    st.sampled_from([0.0, 1 / 3, 0.5, 0.8, 1.0]),
    st.randoms(use_true_random=False),
)
def test_near_pairs_equal_the_comparison_of_all_pairs(texts: list[str], threshold: float, random: Random) -> None:
    left, right = (np.array(random.choices(range(len(texts)), k=random.randint(1, 8))) for _ in range(2))
    near = NearPairs(WordSets.of(texts), threshold).among(left, right)
    expected = [[jaccard(texts[i], texts[j]) >= threshold for j in right] for i in left]
    assert near.tolist() == expected


def test_few_pairs_are_compared_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.zipf(1.3, size=80) % 5000) for _ in range(200)]
    sets = WordSets.of(texts)
    compared = Mock(wraps=sets.jaccard)
    monkeypatch.setattr(WordSets, "jaccard", compared)
    everything = np.arange(len(texts))
    NearPairs(sets, 0.5).among(everything, everything)
    assert len(compared.call_args.args[0]) < 2 * len(texts)


@pytest.mark.slow
def test_blockwise_jaccard_similarities() -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(3000, size=40)) for _ in range(2000)]
    sets = WordSets.of(texts)
    pairs = generator.integers(2000, size=(2, 300_000))
    similarities = sets.jaccard(pairs[0], pairs[1])
    left, right = set(texts[pairs[0, 7]].split()), set(texts[pairs[1, 7]].split())
    assert similarities[7] == len(left & right) / len(left | right)
