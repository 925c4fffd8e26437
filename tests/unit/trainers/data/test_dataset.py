"""Deduplication and the split."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.trainers.conftest import example
from trainers.data.dataset import MIN_JUDGED, MIN_TRAINED, VALIDATION_FLOOR, Dataset, build_dataset, split
from trainers.errors import TooLittleDataError

DOCUMENTS = {"one": "first text", "two": "second text", "twin": "second text"}


def test_repeated_pairs_are_merged_with_all_their_positives(tables: Callable[..., Any]) -> None:
    rows = [
        example("Where?", "one", strength=0.2, negatives=("two",)),
        example("where", "one", strength=0.6),
        example("WHERE ?", "two"),
        example("where", None, negatives=("bad=shown and disliked",)),
    ]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    assert dataset.questions == ("Where?",)
    assert dataset.positive.tolist() == [0, 1]
    assert dataset.strength.tolist() == pytest.approx([0.6, 1.0])
    assert dataset.is_known_positive(np.array([0]), np.array([0, 1, 2, -1])).tolist() == [True, True, False, False]
    assert dataset.impressions == ((1, 2),)
    assert dataset.left_out == {"disliked_without_positive": 1, "repeated_pair": 1}


def test_documents_of_equal_text_are_one_passage(tables: Callable[..., Any]) -> None:
    dataset = build_dataset(*tables([example("q", "twin")], DOCUMENTS))
    assert dataset.documents == 2
    assert dataset.positive.tolist() == [1]
    shown = example("q", "one", negatives=("two", "twin", "twin", "two=carried by the log"))
    dataset = build_dataset(*tables([shown, shown], DOCUMENTS))
    assert dataset.impressions == ((1,),)
    # One in each log: the second document with the same text. The same document twice is not a copy.
    assert dataset.copies == {"documents": 1, "impressions": 2}


def test_a_question_has_the_folders_in_which_it_was_asked(tables: Callable[..., Any]) -> None:
    rows = [example("where", "one"), {**example("Where?", None), "folder_id": "other"}, example("when", "two")]
    assert build_dataset(*tables(rows, DOCUMENTS)).folders == (("f", "other"), ("f",))


def test_a_positive_outside_the_snapshot_needs_the_text_of_the_log(tables: Callable[..., Any]) -> None:
    rows = [example("gone", "three"), example("carried", "four=carried text"), example("x", "one")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    assert dataset.left_out == {"positive_without_text": 1}
    assert dataset.passages == ("first text", "second text", "carried text")
    assert (dataset.documents, dataset.searchable) == (2, 3)


@pytest.mark.parametrize(
    ("rows", "documents"),
    [([], DOCUMENTS), ([example("q", "one")], {"one": "alone"}), ([example("q", "gone")], DOCUMENTS)],
)
def test_too_little_data_is_refused_with_its_numbers(rows: Any, documents: Any, tables: Callable[..., Any]) -> None:
    with pytest.raises(TooLittleDataError, match=r"\d distinct documents"):
        build_dataset(*tables(rows, documents))


def test_a_single_group_cannot_be_split(tables: Callable[..., Any]) -> None:
    rows = [example("same question", "one"), example("Same question?", "two")]
    with pytest.raises(TooLittleDataError, match="1 distinct questions in 1 group"):
        split(build_dataset(*tables(rows, DOCUMENTS)), seed=0)


def test_copies_that_differ_in_white_space_or_case_are_one_passage(tables: Callable[..., Any]) -> None:
    documents = {"one": "Reset  the\npassword.", "copy": "reset the PASSWORD.", "sign": "reset the password?"}
    dataset = build_dataset(*tables([example("q", "copy"), example("r", "sign")], documents))
    assert [text.split("\n", 1)[-1] for text in dataset.passages] == ["password.", "reset the password?"]
    assert dataset.positive.tolist() == [0, 1]


def test_ids_are_the_same_in_either_unicode_form(tables: Callable[..., Any]) -> None:
    decomposed, composed = "re\u0301sume\u0301", "r\u00e9sum\u00e9"
    dataset = build_dataset(
        *tables([example("q", decomposed), example("r", "one")], {composed: "text", "one": "other"})
    )
    assert dataset.positive.tolist() == [0, 1]
    assert dataset.left_out == {}


def test_questions_that_differ_in_signs_keep_their_own_passages(tables: Callable[..., Any]) -> None:
    rows = [example("What does && do?", "one"), example("What does || do?", "two")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    assert len(dataset.questions) == 2
    assert dataset.is_known_positive(np.array([[0], [1]]), np.array([0, 1])).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("groups", [2, 3])
def test_a_few_groups_of_equal_size_cannot_be_split(tables: Callable[..., Any], groups: int) -> None:
    rows = [
        example(" ".join(f"word{group}x{place}" for place in range(12)) + f" variant{number}", "one")
        for group in range(groups)
        for number in range(10)
    ]
    with pytest.raises(
        TooLittleDataError, match=rf"{10 * groups} distinct questions in {groups} groups of near-duplicates"
    ):
        split(build_dataset(*tables(rows, DOCUMENTS)), seed=0)


def test_near_duplicates_stay_on_one_side(tables: Callable[..., Any]) -> None:
    rows = []
    for number in range(60):
        topic = f"topic{number} area{number} thing{number} place{number}"
        rows += [example(f"please explain {topic} to me", "one"), example(f"please explain {topic} to me now", "two")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    parts = split(dataset, seed=3)
    held_out_groups = set(dataset.groups[parts.held_out].tolist())
    trained_groups = set(dataset.groups[dataset.question[parts.train]].tolist())
    assert not held_out_groups & trained_groups
    assert 0.2 <= len(parts.held_out) / len(dataset.questions) <= 0.25
    assert len(parts.train) + len(parts.held_out) == len(rows)


@pytest.mark.parametrize(("topics", "validation"), [(65, 0), (67, 20), (140, 22), (500, 76)])
def test_validation_shares_no_group_with_training_or_held_out(
    topics: int, validation: int, tables: Callable[..., Any]
) -> None:
    rows = []
    for number in range(topics):
        topic = f"topic{number} area{number} thing{number} place{number}"
        rows += [example(f"please explain {topic} to me", "one"), example(f"please explain {topic} to me now", "two")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    parts = split(dataset, seed=3)
    assert len(parts.validation) == validation
    asked = [dataset.question[parts.train], parts.validation, parts.held_out]
    groups = [set(dataset.groups[questions].tolist()) for questions in asked]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    # All of a group goes to one side, so nothing is lost.
    assert sum(map(len, asked)) == len(dataset.questions)
    assert np.array_equal(split(dataset, seed=3).validation, parts.validation)


def test_too_few_questions_give_no_validation_split(tables: Callable[..., Any]) -> None:
    alike = [example(f"how can anybody ever open that old blue door there number{n}", "one") for n in range(400)]
    others = [example(f"area{number} thing{number} place{number}", "two") for number in range(20)]
    dataset = build_dataset(*tables(alike + others, DOCUMENTS))
    parts = split(dataset, seed=3)
    assert len(parts.train) >= MIN_TRAINED
    assert len(parts.validation) == 0


def test_with_enough_judged_questions_only_those_are_held_out(tables: Callable[..., Any]) -> None:
    def questions(number: int, label: str) -> list[Any]:
        words = f"{label} number{number} area{number} thing{number} place{number}"
        near = example(f"please {words} anyway so now", "two")
        return [example(f"please {words} anyway so", "one", label=label), near]

    rows = [row for n in range(MIN_JUDGED) for row in questions(n, "liked" if n % 2 else "corrected")]
    rows += [row for number in range(1000, 1050) for row in questions(number, "cited")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    parts = split(dataset, seed=1)
    assert parts.judged
    assert len(parts.held_out) == MIN_JUDGED // 4
    assert set(parts.held_out.tolist()) <= set(dataset.question[dataset.judged].tolist())
    # Their near-duplicates are held back too, although without a judgement.
    assert len(parts.train) == len(rows) - 2 * len(parts.held_out) - 2 * len(parts.validation)
    assert len(parts.validation) >= VALIDATION_FLOOR
    assert set(parts.validation.tolist()) <= set(dataset.question[dataset.judged].tolist())
    fewer = build_dataset(*tables(rows[2:], DOCUMENTS))
    assert not split(fewer, seed=1).judged


def test_a_pair_is_judged_if_any_of_its_logs_is(tables: Callable[..., Any]) -> None:
    rows = [example("where", "one", label="liked"), example("Where?", "one"), example("when", "two")]
    assert build_dataset(*tables(rows, DOCUMENTS)).judged.tolist() == [True, False]


def test_held_out_questions_stay_held_out_as_data_grows(small_dataset: Dataset) -> None:
    first = split(small_dataset, seed=5)
    assert np.array_equal(first.held_out, split(small_dataset, seed=5).held_out)
    assert not np.array_equal(first.held_out, split(small_dataset, seed=6).held_out)
    fewer = replace(
        small_dataset,
        question=small_dataset.question[:-4],
        positive=small_dataset.positive[:-4],
        judged=small_dataset.judged[:-4],
    )
    gone = set(range(36, 40))
    again = split(fewer, seed=5)
    assert set(again.held_out.tolist()) - gone <= set(first.held_out.tolist())
