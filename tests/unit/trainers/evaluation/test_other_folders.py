"""Folders that the request does not name."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foldtune.pairs import HELD_OUT_SHARE, question_hash
from foldtune.testing import MemoryObjectStore
from tests.jobs import put_job
from tests.unit.trainers.conftest import example, make_tables
from trainers.data.dataset import build_dataset
from trainers.data.snapshot import Snapshot, read_snapshot
from trainers.evaluation.other_folders import MAX_DOCUMENTS, MAX_QUESTIONS, OtherFolders
from trainers.model.encoder import Encoder


def questions(count: int) -> list[str]:
    """Questions that are held out of every training."""
    asked = (f"what is {number}?" for number in itertools.count())
    return list(itertools.islice((text for text in asked if question_hash(text) < HELD_OUT_SHARE), count))


TRAINED = make_tables([example(questions(1)[0], "here"), example("who?", "there")], {"here": "here", "there": "there"})


def snapshot(rows: list[Any], documents: dict[str, str]) -> Snapshot:
    store = MemoryObjectStore()
    job = put_job(store, TRAINED, others=make_tables(rows, documents))
    return read_snapshot(store, job.snapshot_uri, job.snapshot_sha256)


def others_of(rows: list[Any], documents: dict[str, str]) -> OtherFolders | None:
    return OtherFolders.of(snapshot(rows, documents), build_dataset(*TRAINED))


def test_a_snapshot_of_an_earlier_release_has_no_sample() -> None:
    store = MemoryObjectStore()
    job = put_job(store, TRAINED)
    read = read_snapshot(store, job.snapshot_uri, job.snapshot_sha256)
    assert (read.other_examples.num_rows, read.other_documents.num_rows) == (0, 0)
    assert OtherFolders.of(read, build_dataset(*TRAINED)) is None


def test_questions_that_were_trained_on_are_left_out() -> None:
    known, other, without_document = questions(3)
    rows = [example(known.upper(), "a"), example(other, "a"), example(without_document, "gone")]
    others = others_of(rows, {"a": "one", "b": "two"})
    assert others
    assert [others.dataset.questions[question] for question in others.questions] == [other]
    # A log is published to the folder of each document that it cites.
    assert others_of(rows[:1], {"a": "one", "b": "two"}) is None


def test_questions_that_an_incumbent_may_have_been_trained_on_are_left_out() -> None:
    rows = [example(f"what is {number}?", "a") for number in range(50)]
    others = others_of(rows, {"a": "one", "b": "two"})
    assert others
    assert set(others.dataset.questions) < {row["question"] for row in rows}
    assert all(question_hash(question) < HELD_OUT_SHARE for question in others.dataset.questions)


def test_the_sample_is_bounded_and_the_same_every_time() -> None:
    asked = questions(MAX_QUESTIONS + 50)
    rows = [example(question, f"d{number}") for number, question in enumerate(asked)]
    documents = {f"d{number}": f"text {number}" for number in range(MAX_DOCUMENTS + 500)}
    others, again = others_of(rows, documents), others_of(rows[::-1], dict(reversed(documents.items())))
    assert others
    assert again
    assert (len(others.questions), others.dataset.documents) == (MAX_QUESTIONS, MAX_DOCUMENTS)
    assert sorted(others.dataset.questions) == sorted(again.dataset.questions)
    assert sorted(others.dataset.passages) == sorted(again.dataset.passages)


def test_documents_that_were_trained_on_are_searched_too(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a", "b", "c")
    rows = [example(question, name) for question, name in zip(questions(4)[1:], names, strict=True)]
    others = others_of(rows, {name: f"it {name}" for name in names})
    assert others
    encoder = Encoder.load(tiny_folder, "cpu")
    vectors = np.eye(3, dtype=np.float32)
    of_questions = vectors[others.dataset.positive[np.argsort(others.dataset.question)]]
    monkeypatch.setattr(Encoder, "encode", lambda *given: of_questions if given[2] == "query" else vectors)
    assert others.measure(encoder, torch.zeros((2, 3))).metrics().recall_at_1 == 1
    # One of the documents that were trained on is nearer to the first two questions than their own.
    crowded = others.measure(encoder, torch.tensor([[2.0, 2.0, 0.0]]))
    assert crowded.metrics().recall_at_1 == pytest.approx(1 / 3)
    assert crowded.metrics().recall_at_5 == 1
    assert crowded.documents == 4
