"""Deduplication and the split."""

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foldtune.pairs import HELD_OUT_SHARE, MIN_TRAINED, VALIDATION_FLOOR, question_hash
from tests.unit.trainers.conftest import example, make_tables
from trainers.data.dataset import (
    MIN_JUDGED,
    Split,
    build_dataset,
    split,
    with_older_share,
)
from trainers.errors import TooLittleDataError

DOCUMENTS = {"one": "first text", "two": "second text", "twin": "second text"}


def questions(count: int, *, reserved: bool) -> list[str]:
    """Questions of distinct words, all of them held out or none."""
    found = (f"topic{n} area{n} thing{n} place{n} item{n}" for n in range(100_000))
    return list(islice((text for text in found if (question_hash(text) < HELD_OUT_SHARE) == reserved), count))


def near_duplicate(question: str) -> str:
    """Another question of the same group that is not held out."""
    return next(text for n in range(100) if question_hash(text := f"{question} extra{n}") >= HELD_OUT_SHARE)


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


@pytest.mark.parametrize(
    ("reserved", "counts"), [(False, "1 to train on, 0 held out"), (True, "0 to train on, 1 held")]
)
def test_a_single_question_cannot_be_split(tables: Callable[..., Any], reserved: bool, counts: str) -> None:
    (question,) = questions(1, reserved=reserved)
    with pytest.raises(TooLittleDataError, match=f"1 distinct questions with a known positive: {counts}"):
        split(build_dataset(*tables([example(question, "one"), example(f"{question}?", "two")], DOCUMENTS)))


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


def test_a_label_on_a_text_that_has_changed_since_is_left_out(tables: Callable[..., Any]) -> None:
    before, now = "the ferry leaves the old harbour at nine every morning", "tickets are sold by a machine in the hall"
    rows = [
        example("edited", f"one={before.replace('nine', 'ten')}", label="liked"),
        example("excerpt", "one=leaves the old harbour"),
        example("surroundings", f"one=First line. {before} And so on, for a page of other words about something else."),
        example("anew", f"two={before}", label="liked"),
        example("negative", "one", negatives=(f"two={before}", "three")),
    ]
    dataset = build_dataset(*tables(rows, {"one": before, "two": now, "three": "other"}))
    assert [dataset.questions[index] for index in dataset.question] == ["edited", "excerpt", "surroundings", "negative"]
    assert dataset.left_out == {"text_changed": 1}
    # The new text of a negative may be the right one.
    assert dataset.impressions[4] == (2,)
    assert dataset.changed_impressions == 1
    assert dataset.passages == (before, now, "other")


@pytest.mark.parametrize(("before", "now"), [("&& and || of the shell", "???"), ("===", "a text"), ("+++", "---")])
def test_a_text_without_words_is_another_text(before: str, now: str, tables: Callable[..., Any]) -> None:
    rows = [example("changed", f"one={before}"), example("same", f"two={before}")]
    dataset = build_dataset(*tables(rows, {"one": now, "two": before}))
    assert [dataset.questions[index] for index in dataset.question] == ["same"]
    assert dataset.left_out == {"text_changed": 1}


def test_if_all_labels_are_left_out_their_counts_are_told(tables: Callable[..., Any]) -> None:
    with pytest.raises(TooLittleDataError, match="left out: 1 positive_without_text, 1 text_changed"):
        build_dataset(*tables([example("q", "gone"), example("r", "one=seen then")], DOCUMENTS))


def test_texts_that_only_logs_have_are_passages_of_their_own(tables: Callable[..., Any]) -> None:
    rows = [example("q", "gone=before"), example("r", "gone=after"), example("s", "gone"), example("t", "one")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    assert [dataset.passages[index] for index in dataset.positive] == ["before", "after", "before", "first text"]


def in_folder(folder: str, row: Any) -> Any:
    return {**row, "folder_id": folder, "positive": {**row["positive"], "folder_id": folder}}


def test_a_correction_finds_its_document_in_another_folder(tables: Callable[..., Any]) -> None:
    rows = [
        in_folder("g", example("right", "one", label="corrected")),
        in_folder("g", example("nowhere", "other", label="corrected")),
        # This one named the folder.
        in_folder("g", example("named", "two", label="corrected")) | {"folder_id": "h"},
        # Only a person who corrects names a document that was not shown.
        in_folder("g", example("cited", "one")),
    ]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    assert dataset.positive.tolist() == [0]
    assert dataset.judged.tolist() == [True]
    assert dataset.left_out == {"correction_without_document": 2, "positive_without_text": 1}


def test_a_correction_to_an_id_of_several_folders_is_not_guessed(tables: Callable[..., Any]) -> None:
    examples, documents = tables(
        [in_folder("g", example("q", "one", label="corrected")), example("r", "two")], DOCUMENTS
    )
    twice = [
        {**row, "folder_id": "h", "text": text} for row in documents.to_pylist()[:1] for text in ("first text", "x")
    ]
    for row, positives in zip(twice, ([0, 1], [1]), strict=True):
        both = pa.concat_tables([documents, pa.Table.from_pylist([row], documents.schema)])
        dataset = build_dataset(examples, both)
        assert dataset.positive.tolist() == positives
        assert dataset.left_out.get("correction_without_document", 0) == 2 - len(positives)


def test_a_question_that_means_something_else_each_time_is_left_out(tables: Callable[..., Any]) -> None:
    documents = {str(number): f"text of {number}" for number in range(60)}

    def asked(question: str, *positives: int) -> list[Any]:
        return [
            example(question, str(positive)) | {"log_id": f"{question} {log}"} for log, positive in enumerate(positives)
        ]

    copies = [example("of many folders", str(positive)) for positive in range(9)]
    rows = [
        *asked("Tell me more.", *range(30)),
        *asked("why", *range(5)),
        *asked("often", *[number % 25 for number in range(100)]),
        *asked("of four", *range(4)),
        *asked("mostly one", *[0] * 6, *range(1, 6)),
        *asked("of some", *[number % 7 for number in range(30)]),
        *copies,
    ]
    dataset = build_dataset(*tables(rows, documents))
    assert dataset.left_out["follow_up"] == 30 + 5 + 25
    kept = {dataset.questions[index] for index in dataset.question}
    assert kept == {"of four", "mostly one", "of some", "of many folders"}


def test_questions_that_differ_in_signs_keep_their_own_passages(tables: Callable[..., Any]) -> None:
    rows = [example("What does && do?", "one"), example("What does || do?", "two")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    assert len(dataset.questions) == 2
    assert dataset.is_known_positive(np.array([[0], [1]]), np.array([0, 1])).tolist() == [[True, False], [False, True]]


def test_held_out_questions_are_the_same_whatever_the_rest_of_the_snapshot(tables: Callable[..., Any]) -> None:
    everything = [f"topic{number} area{number} thing{number} place{number}" for number in range(400)]
    # Near-duplicates of earlier questions, in other snapshots than those.
    everything += [
        f"{question} way{number} hue{number} {end}" for number, question in enumerate(everything) for end in "ab"
    ]
    random = Random(0)
    trained, held_out = set[str](), set[str]()
    for size in range(100, 1200, 100):
        rows = [example(question, "one") for question in random.sample(everything, size)]
        dataset = build_dataset(*tables(rows, DOCUMENTS))
        parts = split(dataset)
        trained |= {dataset.questions[index] for index in dataset.question[parts.train]}
        held_out |= {dataset.questions[index] for index in parts.held_out}
        assert not trained & held_out
    assert 0.82 * len(everything) > len(trained) > 0.7 * len(everything)
    assert len(held_out) > 60


def test_no_near_duplicate_of_a_held_out_question_was_trained_on_in_a_smaller_set(tables: Callable[..., Any]) -> None:
    topics = [" ".join(f"{word}{number}" for word in "abcdefghi") for number in range(300)]
    rows = [example(f"{topic} {end}", "one") for end in ("first", "second") for topic in topics]
    trained = set[int]()
    # All questions as they come in time: the group of each is its topic.
    for size in (100, 300, 400, 600):
        dataset = build_dataset(*tables(rows[:size], DOCUMENTS))
        parts = split(dataset)
        topic_of = [topics.index(question.rpartition(" ")[0]) for question in dataset.questions]
        trained |= {topic_of[index] for index in dataset.question[parts.train]}
        assert not trained & {topic_of[index] for index in parts.held_out}
    assert parts.kept_back > 0
    assert parts.kept_back + len(parts.held_out) + len(parts.validation) + len(parts.train) == len(rows)


def test_a_question_is_held_out_in_any_spelling(tables: Callable[..., Any]) -> None:
    (question,), others = questions(1, reserved=True), questions(3, reserved=False)
    for spelling in (question, f"  {question.upper()} ?", " ".join(reversed(question.split()))):
        rows = [example(other, "one") for other in (*others, spelling)]
        assert split(build_dataset(*tables(rows, DOCUMENTS))).held_out.tolist() == [3]


@pytest.mark.parametrize(("topics", "validation"), [(49, 0), (52, 20), (140, 28), (500, 100)])
def test_validation_shares_no_group_with_training_or_held_out(
    topics: int, validation: int, tables: Callable[..., Any]
) -> None:
    rows = [example(question, "one") for question in questions(20, reserved=True)]
    for question in questions(topics, reserved=False):
        rows += [example(question, "one"), example(near_duplicate(question), "two")]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    parts = split(dataset)
    assert len(parts.validation) == validation
    asked = [dataset.question[parts.train], parts.validation, parts.held_out]
    groups = [set(dataset.groups[of].tolist()) for of in asked]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    # All of a group goes to one side, so nothing is lost.
    assert sum(map(len, asked)) == len(dataset.questions)
    assert np.array_equal(split(dataset).validation, parts.validation)


def test_too_few_questions_give_no_validation_split(tables: Callable[..., Any]) -> None:
    alike = [example(f"how can anybody ever open that old blue door there number{n}", "one") for n in range(400)]
    others = [example(question, "two") for question in [*questions(19, reserved=False), *questions(5, reserved=True)]]
    parts = split(build_dataset(*tables(alike + others, DOCUMENTS)))
    assert len(parts.train) >= MIN_TRAINED
    assert len(parts.validation) == 0
    # The reserved ones of the group are neither trained on nor evaluated.
    assert len(parts.held_out) == 5
    assert parts.kept_back == len(alike) + 19 - len(parts.train)


def test_with_enough_judged_questions_only_those_are_held_out(tables: Callable[..., Any]) -> None:
    reserved, others = questions(MIN_JUDGED + 20, reserved=True), questions(400, reserved=False)
    rows = [
        example(question, "one", label="cited" if number >= MIN_JUDGED else "liked" if number % 2 else "corrected")
        for number, question in enumerate(reserved)
    ]
    rows += [
        example(question, "two", label="liked" if number < 300 else "cited") for number, question in enumerate(others)
    ]
    dataset = build_dataset(*tables(rows, DOCUMENTS))
    parts = split(dataset)
    assert parts.judged
    assert [dataset.questions[index] for index in parts.held_out] == reserved[:MIN_JUDGED]
    # Those without a judgement are not trained on either.
    assert parts.kept_back == 20
    assert len(parts.train) == 400 - len(parts.validation)
    assert len(parts.validation) >= VALIDATION_FLOOR
    assert set(parts.validation.tolist()) <= set(dataset.question[dataset.judged].tolist())
    fewer = split(build_dataset(*tables(rows[1:], DOCUMENTS)))
    assert not fewer.judged
    assert len(fewer.held_out) == len(reserved) - 1


def test_a_pair_is_judged_if_any_of_its_logs_is(tables: Callable[..., Any]) -> None:
    rows = [example("where", "one", label="liked"), example("Where?", "one"), example("when", "two")]
    assert build_dataset(*tables(rows, DOCUMENTS)).judged.tolist() == [True, False]


@pytest.mark.parametrize(
    ("newer", "share", "older"),
    [(40, 0.5, 40), (40, 0.2, 10), (40, 0.0, 0), (20, 0.9, 60), (40, 1.0, 40), (0, 0.2, 80), (80, 0.5, 0)],
)
def test_of_older_examples_a_share_is_trained_on(newer: int, share: float, older: int) -> None:
    names = [f"d{number}" for number in range(80)]
    moments = [datetime.fromtimestamp(1_000 + 10 * number, UTC) for number in range(80)]
    rows = [example(name, name) | {"occurred_at": at} for name, at in zip(names, moments, strict=True)]
    # Asked again: the newest log counts.
    rows += [rows[-1] | {"occurred_at": moments[0]}]
    dataset = build_dataset(*make_tables(rows, dict(zip(names, names, strict=True))))
    parts = Split(np.arange(80), np.empty(0, np.int64), np.empty(0, np.int64), judged=False)
    since = 1_000 + 10 * (80 - newer) - 5
    train = with_older_share(dataset, parts, since, share, seed=0).train
    assert (dataset.logged[train] > since).sum() == newer
    assert (dataset.logged[train] <= since).sum() == older
    assert train.tolist() == with_older_share(dataset, parts, since, share, seed=0).train.tolist() == sorted(train)
