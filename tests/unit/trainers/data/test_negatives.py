from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from foldtune.knobs import DatasetKnobs
from tests.unit.trainers.conftest import example
from trainers.data.dataset import Dataset, build_dataset
from trainers.data.negatives import Negatives, NegativeSource, Verdict, hardest
from trainers.data.words import WordSets

DOCUMENTS = {
    "p": "alpha beta gamma delta",
    "near": "alpha beta gamma epsilon",
    "other": "zeta eta theta",
    "far": "iota kappa lamda",
    "second": "mu nu xi",
}


def choose(dataset: Dataset, queries: Any, passages: Any, **knobs: Any) -> Negatives:
    rows = np.arange(len(dataset.question))
    source = NegativeSource(dataset, rows, WordSets.of(dataset.passages), DatasetKnobs(**knobs))
    return source.with_easy(source.hard(torch.tensor(queries), torch.tensor(passages)), np.random.default_rng(0))


def test_each_filter_takes_its_own_and_counts_it(tables: Callable[..., Any]) -> None:
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
    # One hard one was missing, and the only other document came in its place.
    assert chosen.counts["hard_filled_with_easy"] == 1
    assert chosen.passages[0].tolist()[1] == 3


@pytest.mark.parametrize(("hard", "wanted"), [(0, False), (1, False), (2, True)])
def test_nothing_is_mined_where_enough_was_shown(
    tables: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, hard: int, wanted: bool
) -> None:
    # Of what was shown, "near" is too near and "p" is right.
    rows = [example("q", "p", negatives=("near", "p", "other")), example("r", "p", negatives=("far", "second"))]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    knobs = DatasetKnobs(hard_negatives=hard, exclusion_threshold=0.5)
    source = NegativeSource(dataset, np.arange(2), WordSets.of(dataset.passages), knobs)
    assert source.wants_mining is wanted
    searched = Mock(wraps=hardest)
    monkeypatch.setattr("trainers.data.negatives.hardest", searched)
    found = source.hard(torch.eye(2), torch.eye(5)[:, :2])
    assert searched.called is wanted
    assert found.passages.shape == (2, hard)


def test_a_lower_threshold_is_stricter(tables: Callable[..., Any]) -> None:
    dataset = build_dataset(*tables([example("q", "p")], DOCUMENTS))
    equal = [[0.1, 1.0]] * 5
    lenient = choose(dataset, [[1.0, 0.0]], equal, hard_negatives=4, easy_negatives=0, exclusion_threshold=1.0)
    strict = choose(dataset, [[1.0, 0.0]], equal, hard_negatives=4, easy_negatives=0, exclusion_threshold=0.0)
    assert 1 in lenient.passages
    assert (strict.passages == -1).all()
    assert strict.counts["missing"] == 4


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
    monkeypatch.setattr("trainers.data.similarity.TILE", 100)
    torch.manual_seed(0)
    queries, passages = torch.randn(23, 8), torch.randn(40, 8)
    lowest = (queries @ passages.T).numpy().max(axis=1)
    lowest[0] = -1.0
    found, above = hardest(queries, passages, lowest, 6)
    scores = (queries @ passages.T).numpy()
    bound = lowest - 0.05 * np.abs(lowest)
    assert above == int((scores > bound[:, None]).sum())
    for row, score, limit in zip(found, scores, bound, strict=True):
        expected = [index for index in np.argsort(-score) if score[index] <= limit][:6]
        assert row.tolist() == [*expected, *[-1] * (6 - len(expected))]


def test_the_similarity_of_many_pairs_is_that_of_their_words() -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(3000, size=40)) for _ in range(2000)]
    sets = WordSets.of(texts)
    pairs = generator.integers(2000, size=(2, 300_000))
    found = sets.jaccard(pairs[0], pairs[1])
    one, other = set(texts[pairs[0, 7]].split()), set(texts[pairs[1, 7]].split())
    assert found[7] == len(one & other) / len(one | other)


def test_an_explanation_says_what_choosing_does(tables: Callable[..., Any]) -> None:
    shown = ("near", "p", "other", "other")
    dataset = build_dataset(*tables([example("q", "p", negatives=shown), example("q", "second")], DOCUMENTS))
    passages = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.2, 1.0], [0.9, 0.4], [0.5, 0.9]])
    knobs = DatasetKnobs(hard_negatives=1, easy_negatives=0, exclusion_threshold=0.6)
    source = NegativeSource(dataset, np.arange(2), WordSets.of(dataset.passages), knobs)
    found = source.explain(torch.tensor([[1.0, 0.0]]), passages, depth=4)
    assert [(dataset.passages[one.passage], one.shown, one.verdict) for one in found] == [
        (DOCUMENTS["near"], True, Verdict.NEAR_POSITIVE_BY_WORDS),
        (DOCUMENTS["p"], True, Verdict.KNOWN_POSITIVE),
        (DOCUMENTS["other"], True, Verdict.NEGATIVE),
        (DOCUMENTS["p"], False, Verdict.KNOWN_POSITIVE),
        (DOCUMENTS["far"], False, Verdict.ABOVE_SCORE_MARGIN),
        (DOCUMENTS["second"], False, Verdict.KNOWN_POSITIVE),
        (DOCUMENTS["other"], False, Verdict.SAME_PASSAGE_TWICE),
    ]
    assert [one.chosen for one in found] == [False, False, True, False, False, False, False]
    assert found[0].jaccard == 0.6
    assert found[4].score == pytest.approx(0.9)
    chosen = source.hard(torch.tensor([[1.0, 0.0]]), passages)
    assert chosen.passages[0].tolist() == [one.passage for one in found if one.chosen]
