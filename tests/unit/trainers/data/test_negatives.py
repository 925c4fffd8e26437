"""Hard and easy negatives, and the exclusion of false negatives."""

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foldtune.knobs import DatasetKnobs
from foldtune.texts import words
from tests.unit.trainers.conftest import example, make_tables
from trainers.data.dataset import Dataset, build_dataset
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import CandidateDecision, Negatives, NegativeSampler, nearest_below_margin

DOCUMENTS = {
    "p": "alpha beta gamma delta",
    "near": "alpha beta gamma epsilon",
    "other": "zeta eta theta",
    "far": "iota kappa lamda",
    "second": "mu nu xi",
}


def choose(dataset: Dataset, queries: Any, passages: Any, **knobs: Any) -> Negatives:
    rows = np.arange(len(dataset.question))
    sampler = NegativeSampler(dataset, rows, WordSets.of(dataset.passages), DatasetKnobs(**knobs))
    return sampler.with_easy(sampler.hard(torch.tensor(queries), torch.tensor(passages)), np.random.default_rng(0))


def test_each_rule_excludes_and_counts_its_candidates(tables: Callable[..., Any]) -> None:
    shown = ("near", "p", "other", "other", "second")
    rows = [example("q", "p", negatives=shown), example("q", "second")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    # Scores with the question: p 1, near .1, other .2, far .9 (above the margin of "second", .5), second .5.
    passages = [[1.0, 0.0], [0.1, 1.0], [0.2, 1.0], [0.9, 0.4], [0.5, 0.9]]
    chosen = choose(dataset, [[1.0, 0.0]], passages, hard_negatives=2, easy_negatives=0, exclusion_threshold=0.6)
    # "other" was shown; "near" shares 3 of 5 words with p, and none with "second".
    assert chosen.passages[0].tolist()[0] == 2
    assert chosen.passages[1].tolist() == [1, 2]
    # Candidates of both rows: near, p, other and second were shown, other and near are mined.
    assert chosen.counts["near_positive_by_words"] == 1
    assert chosen.counts["above_score_margin"] == 1
    assert chosen.counts["known_positive"] == 4
    assert chosen.counts["same_passage_twice"] == 4
    # One hard negative was missing, and the only other document replaced it.
    assert chosen.counts["hard_filled_with_easy"] == 1
    assert chosen.passages[0].tolist()[1] == 3


@pytest.mark.parametrize(("hard", "wanted"), [(0, False), (1, False), (2, True)])
def test_mining_is_skipped_where_impressions_suffice(
    tables: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, hard: int, wanted: bool
) -> None:
    # Of the impressions of "q", "near" is too similar and "p" is positive.
    rows = [example("q", "p", negatives=("near", "p", "other")), example("r", "p", negatives=("far", "second"))]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    knobs = DatasetKnobs(hard_negatives=hard, exclusion_threshold=0.5)
    sampler = NegativeSampler(dataset, np.arange(2), WordSets.of(dataset.passages), knobs)
    assert sampler.needs_mining is wanted
    searched = Mock(wraps=nearest_below_margin)
    monkeypatch.setattr("trainers.data.negatives.nearest_below_margin", searched)
    negatives = sampler.hard(torch.eye(2), torch.eye(5)[:, :2])
    assert searched.called is wanted
    assert negatives.passages.shape == (2, hard)


def test_a_lower_threshold_is_stricter(tables: Callable[..., Any]) -> None:
    dataset = build_dataset(*tables([example("q", "p")], DOCUMENTS))
    equal = [[0.1, 1.0]] * 5
    lenient = choose(dataset, [[1.0, 0.0]], equal, hard_negatives=4, easy_negatives=0, exclusion_threshold=1.0)
    strict = choose(dataset, [[1.0, 0.0]], equal, hard_negatives=4, easy_negatives=0, exclusion_threshold=0.0)
    assert 1 in lenient.passages
    assert (strict.passages == -1).all()
    assert strict.counts["missing"] == 4


WORDS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5).map(" ".join)
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), min_size=1, max_size=12)


@settings(max_examples=30)
@given(st.lists(WORDS, min_size=8, max_size=8), PAIRS, st.sampled_from([0.0, 0.4, 0.5, 0.75, 1.0]), st.data())
def test_near_copies_of_a_positive_are_no_negatives_in_the_batch(
    texts: list[str], pairs: list[tuple[int, int]], threshold: float, draw: st.DataObject
) -> None:
    # Punctuation makes passages of equal words distinct.
    rows = [example(f"question {question}", str(positive)) for question, positive in pairs]
    documents = {str(name): text + "." * name for name, text in enumerate(texts)}
    dataset = build_dataset(*make_tables(rows, documents))
    sampler = NegativeSampler(
        dataset, np.arange(len(rows)), WordSets.of(dataset.passages), DatasetKnobs(exclusion_threshold=threshold)
    )
    picked = draw.draw(st.lists(st.integers(0, len(dataset.question) - 1), min_size=1, max_size=6))
    passages = np.array(sorted(draw.draw(st.sets(st.integers(0, 7), min_size=1))))
    excluded, near = sampler.excluded_in_batch(dataset.question[picked], passages)

    known, similar = np.zeros_like(excluded), np.zeros_like(excluded)
    for row, question in enumerate(dataset.question[picked]):
        for column, passage in enumerate(passages):
            positives = [positive for asked, positive in zip(*dataset.known_pairs(), strict=True) if asked == question]
            known[row, column] = passage in positives
            candidate = set(words(dataset.passages[passage]))
            for positive in map(set, map(words, (dataset.passages[positive] for positive in positives))):
                similar[row, column] |= len(candidate & positive) / len(candidate | positive) >= threshold
    assert np.array_equal(excluded, known | similar)
    assert near == (similar & ~known).sum()


def test_easy_negatives_are_documents_and_never_positives(small_dataset: Dataset) -> None:
    count = len(small_dataset.passages)
    zeros = np.zeros((count, 2), dtype=np.float32)
    # Nothing is excluded by its words: these documents have most of them in common.
    knobs = {"hard_negatives": 0, "easy_negatives": 5, "exclusion_threshold": 1.0}
    chosen = choose(small_dataset, zeros[: len(small_dataset.questions)], zeros, **knobs)
    assert chosen.passages.shape == (40, 5)
    assert (chosen.passages >= 0).all()
    assert not small_dataset.is_known_positive(small_dataset.question[:, None], chosen.passages).any()
    assert all(len(set(row)) == 5 for row in chosen.passages.tolist())
    expected: Counter[str] = Counter()
    drawn = np.random.default_rng(0).integers(count, size=(40, 18))
    for question, row in zip(small_dataset.question, drawn, strict=True):
        seen: set[int] = set()
        for passage in row:
            if len(seen) == 5:
                break
            if small_dataset.is_known_positive(question, passage):
                expected["easy_known_positive"] += 1
            elif passage in seen:
                expected["easy_same_passage_twice"] += 1
            else:
                seen.add(passage)
    assert expected
    assert {name: chosen.counts[name] for name in expected} == expected


def test_mining_in_tiles_equals_a_full_sort(monkeypatch: Any) -> None:
    monkeypatch.setattr("trainers.data.search.TILE", 100)
    torch.manual_seed(0)
    queries, passages = torch.randn(23, 8), torch.randn(40, 8)
    lowest = (queries @ passages.T).numpy().max(axis=1)
    lowest[0] = -1.0
    neighbours, above = nearest_below_margin(queries, passages, lowest, 6)
    scores = (queries @ passages.T).numpy()
    bound = lowest - 0.05 * np.abs(lowest)
    assert above == int((scores > bound[:, None]).sum())
    for row, score, limit in zip(neighbours, scores, bound, strict=True):
        expected = [index for index in np.argsort(-score) if score[index] <= limit][:6]
        assert row.tolist() == [*expected, *[-1] * (6 - len(expected))]


def test_decisions_agree_with_the_chosen_negatives(tables: Callable[..., Any]) -> None:
    shown = ("near", "p", "other", "other")
    dataset = build_dataset(*tables([example("q", "p", negatives=shown), example("q", "second")], DOCUMENTS))
    passages = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.2, 1.0], [0.9, 0.4], [0.5, 0.9]])
    knobs = DatasetKnobs(hard_negatives=1, easy_negatives=0, exclusion_threshold=0.6)
    sampler = NegativeSampler(dataset, np.arange(2), WordSets.of(dataset.passages), knobs)
    candidates = sampler.decisions(0, torch.tensor([[1.0, 0.0]]), passages, depth=4)
    assert [(dataset.passages[candidate.passage], candidate.shown, candidate.decision) for candidate in candidates] == [
        (DOCUMENTS["near"], True, CandidateDecision.NEAR_POSITIVE_BY_WORDS),
        (DOCUMENTS["p"], True, CandidateDecision.KNOWN_POSITIVE),
        (DOCUMENTS["other"], True, CandidateDecision.NEGATIVE),
        (DOCUMENTS["p"], False, CandidateDecision.KNOWN_POSITIVE),
        (DOCUMENTS["far"], False, CandidateDecision.ABOVE_SCORE_MARGIN),
        (DOCUMENTS["second"], False, CandidateDecision.KNOWN_POSITIVE),
        (DOCUMENTS["other"], False, CandidateDecision.SAME_PASSAGE_TWICE),
    ]
    assert [candidate.chosen for candidate in candidates] == [False, False, True, False, False, False, False]
    assert candidates[0].jaccard == 0.6
    assert candidates[4].score == pytest.approx(0.9)
    chosen = sampler.hard(torch.tensor([[1.0, 0.0]]), passages)
    assert chosen.passages[0].tolist() == [candidate.passage for candidate in candidates if candidate.chosen]
