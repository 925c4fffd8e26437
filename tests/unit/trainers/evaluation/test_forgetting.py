"""Metrics on the general questions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from foldtune.testing import MemoryObjectStore
from tests.unit.trainers.evaluation.conftest import evaluation
from trainers.errors import SettingError
from trainers.evaluation.forgetting import (
    MAX_DISTRACTORS,
    MAX_FILE_BYTES,
    MIN_KNOWN,
    QuestionSet,
    forgotten,
    measure_general,
    read_general_questions,
)
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder

OWN = [
    {"question": "who pays for the visa?", "passage": "the company"},
    {"question": "and who signs?", "passage": "HR"},
]


@pytest.fixture(scope="module")
def sets() -> list[QuestionSet]:
    return read_general_questions(None, MemoryObjectStore())


def test_general_questions_are_english_and_of_twelve_languages(sets: list[QuestionSet]) -> None:
    english, multilingual = sets
    assert (len(english.pairs), len(multilingual.pairs)) == (60, 48)
    assert (english.min_known, multilingual.min_known) == (0, MIN_KNOWN)
    for questions in sets:
        assert len({pair.question for pair in questions.pairs}) == len({pair.passage for pair in questions.pairs})


def test_the_operators_own_questions_come_from_a_file_or_the_bucket(tmp_path: Path) -> None:
    store, file = MemoryObjectStore(), tmp_path / "own.json"
    file.write_text(json.dumps(OWN))
    store.put("base-models/own.json", file.read_bytes())
    for own in (str(file), store.uri("base-models/own.json")):
        assert [pair.model_dump() for pair in read_general_questions(own, store)[2].pairs] == OWN


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (json.dumps(OWN[:1]).encode(), "at least 2 items"),
        (json.dumps(OWN * 2_501).encode(), "at most 5000 items"),
        (json.dumps([*OWN, {"question": "  ", "passage": "x"}]).encode(), "2.question"),
        (json.dumps([*OWN, {"question": "x"}]).encode(), "2.passage"),
        (json.dumps({"question": "x"}).encode(), "valid array"),
        (b" " * (MAX_FILE_BYTES + 1), f"more than {MAX_FILE_BYTES} bytes"),
        (None, "No such file"),
    ],
)
def test_unusable_questions_are_refused_with_the_setting_and_the_bound(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError) as caught:
        read_general_questions(str(file), MemoryObjectStore())
    assert "trainer.general_questions" in str(caught.value)
    assert problem in str(caught.value)


def test_a_huge_object_of_questions_is_not_read_whole() -> None:
    store = MemoryObjectStore()
    store.put("own.json", b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(SettingError, match=f"more than {MAX_FILE_BYTES} bytes"):
        read_general_questions(store.uri("own.json"), store)


def test_questions_missing_in_the_bucket_or_of_another_are_refused() -> None:
    store = MemoryObjectStore()
    for uri in (store.uri("none.json"), "s3://another/none.json"):
        with pytest.raises(SettingError, match=r"trainer\.general_questions"):
            read_general_questions(uri, store)


def test_languages_that_the_base_model_does_not_know_cannot_be_forgotten(sets: list[QuestionSet]) -> None:
    known, unknown = evaluation([0.9] * 60), evaluation([MIN_KNOWN - 0.1] * 48)
    after = [evaluation([0.1] * 60), evaluation([0.1] * 48)]
    (english,) = forgotten(sets, [known, unknown], after, margin=0.05, seed=0)
    assert english.questions == "general questions"
    assert len(forgotten(sets, [known, evaluation([0.8] * 48)], after, margin=0.05, seed=0)) == 2


@pytest.mark.slow
def test_a_pretrained_model_scores_high_and_a_random_one_low(tiny_folder: Path, sets: list[QuestionSet]) -> None:
    minilm, tiny = Encoder.load(packaged_minilm_folder(), "cpu"), Encoder.load(tiny_folder, "cpu")
    english, multilingual = measure_general(minilm, sets, torch.empty((0, minilm.dimension)), seed=0)
    assert english.metrics().recall_at_1 > 0.9
    assert english.metrics().ndcg_at_10 > 0.95
    # It is a model of English.
    assert multilingual.metrics().ndcg_at_10 < MIN_KNOWN
    assert measure_general(tiny, sets, torch.empty((0, tiny.dimension)), seed=0)[0].metrics().ndcg_at_10 < 0.5


def test_documents_are_distractors(tiny_folder: Path, sets: list[QuestionSet]) -> None:
    tiny = Encoder.load(tiny_folder, "cpu")
    (alone,) = measure_general(tiny, sets[:1], torch.zeros((0, tiny.dimension)), seed=0)
    # MAX_DISTRACTORS are drawn, and the same ones for the same seed.
    many = torch.randn((3 * MAX_DISTRACTORS, tiny.dimension), generator=torch.Generator().manual_seed(0))
    (crowded,), (again,) = (measure_general(tiny, sets[:1], many, seed=1) for _ in range(2))
    assert crowded.ndcg.tolist() == again.ndcg.tolist()
    assert crowded.ndcg.mean() < alone.ndcg.mean()
    assert crowded.documents == 60 + MAX_DISTRACTORS


def test_hand_computed(tiny_folder: Path, sets: list[QuestionSet], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, (english, _) = Encoder.load(tiny_folder, "cpu"), sets
    texts = sorted(pair.passage for pair in english.pairs)
    order = [texts.index(pair.passage) for pair in english.pairs]
    monkeypatch.setattr(
        Encoder, "encode", lambda *given: np.eye(60, dtype=np.float32)[order if given[2] == "query" else range(60)]
    )
    (found,) = measure_general(tiny, [english], torch.zeros((9, 60)), seed=0)
    assert (found.metrics().recall_at_1, found.metrics().ndcg_at_10) == (1, 1)
    # One document that is nearer to half of the questions than their own passages.
    nearer = torch.cat([torch.ones(30), torch.zeros(30)])[None] * 2
    (found,) = measure_general(tiny, [english], nearer, seed=0)
    assert found.metrics().recall_at_1 == 0.5
    assert found.metrics().ndcg_at_10 == pytest.approx(0.5 + 0.5 / math.log2(3))
