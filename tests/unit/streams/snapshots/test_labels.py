"""The label, strength, positive and negatives of a log with its feedback."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import structs

from foldtune.settings import LabelWeights, SetLimits
from foldtune.snapshot_schema import Label
from streams.snapshots.labels import label, without_deleted
from streams.training_sets.erasures import ErasureRules, Erasures
from streams.training_sets.fold import FolderSet, JudgedLog, fold
from streams.training_sets.state_events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    Feedback,
    RetrievedPassage,
    StateEvent,
    StateRecord,
    Verdict,
)

RETRIEVED = tuple(
    RetrievedPassage(document_id=name, folder_id="g" if name == "far" else "f", rank=rank, score=1 / rank)
    for rank, name in enumerate(["one", "two", "far", "four"], 1)
)


def judged(verdict: Verdict | None = None, **changes: Any) -> JudgedLog:
    log = ChatLog(
        log_id="l",
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        agent_id="a",
        question="how?",
        folder_id="f",
        retrieved=RETRIEVED,
        **({"cited_document_ids": ("four", "two")} | changes),
    )
    return JudgedLog(log, verdict)


@pytest.mark.parametrize(
    ("log", "kind", "strength", "positive", "negatives"),
    [
        (judged(), Label.CITED, 0.6, "two", ["one", "far"]),
        (judged(Verdict(rating="like")), Label.LIKED, 1.0, "two", ["one", "far"]),
        (judged(Verdict(correct_document_id="far")), Label.CORRECTED, 1.0, "far", ["one", "two", "four"]),
        (
            judged(Verdict(rating="like", correct_document_id="two")),
            Label.CORRECTED,
            1.0,
            "two",
            ["one", "far"],
        ),
        (judged(Verdict(correct_document_id="new")), Label.CORRECTED, 1.0, "new", ["one", "two", "far", "four"]),
        (judged(Verdict(rating="dislike")), Label.DISLIKED, 0.0, None, ["four", "two"]),
        (judged(cited_document_ids=("far", "four")), Label.CITED, 0.6, "four", ["one", "two"]),
        (judged(cited_document_ids=("far",)), Label.CITED, 0.6, "far", ["one", "two", "four"]),
        (judged(cited_document_ids=("never retrieved",)), Label.CITED, 0.6, "never retrieved", None),
    ],
)
def test_the_label_of_a_log(
    log: JudgedLog, kind: Label, strength: float, positive: str | None, negatives: list[str] | None
) -> None:
    example = label(log, LabelWeights())
    assert example
    assert (example.label, example.strength) == (kind, strength)
    assert (example.positive.document_id if example.positive else None) == positive
    if negatives is not None:
        assert [passage.document_id for passage in example.negatives] == negatives


def test_a_positive_in_another_folder_keeps_that_folder() -> None:
    example = label(judged(cited_document_ids=("far",)), LabelWeights())
    assert example
    assert example.positive
    assert example.positive.folder_id == "g"


@pytest.mark.parametrize(
    "log",
    [
        judged(cited_document_ids=()),
        judged(Verdict(rating="like"), cited_document_ids=()),
        judged(Verdict(rating="dislike"), cited_document_ids=()),
    ],
)
def test_a_log_without_a_citation_has_no_label(log: JudgedLog) -> None:
    assert label(log, LabelWeights()) is None


def test_a_retrieved_passage_is_a_positive_only_if_configured_and_confident() -> None:
    log = judged(cited_document_ids=())
    example = label(log, LabelWeights(retrieved=0.2, retrieved_min_score=0.9))
    assert example
    assert example.positive
    assert (example.label, example.positive.document_id) == (Label.RETRIEVED, "one")
    assert label(log, LabelWeights(retrieved=0.2, retrieved_min_score=1.1)) is None


def test_citations_can_be_excluded() -> None:
    assert label(judged(), LabelWeights(cited=None)) is None


def test_a_correction_may_name_the_folder_of_its_document() -> None:
    example = label(judged(Verdict(correct_document_id="two", correct_folder_id="g")), LabelWeights())
    assert example
    assert example.positive
    assert (example.positive.folder_id, example.positive.document_id) == ("g", "two")
    example = label(judged(Verdict(correct_document_id="far", correct_folder_id="g")), LabelWeights())
    assert example
    assert [passage.document_id for passage in example.negatives] == ["one", "two", "four"]


def test_ids_are_the_same_in_either_unicode_spelling() -> None:
    composed, decomposed = "r\u00e9sum\u00e9", "re\u0301sume\u0301"
    retrieved = (RetrievedPassage(decomposed, "f", 1), RetrievedPassage("two", "f", 2))
    log = structs.replace(judged().log, log_id=composed, retrieved=retrieved, cited_document_ids=(composed,))
    later = log.occurred_at + timedelta(hours=1)
    events: list[StateEvent] = [
        log,
        Feedback("b", later, decomposed, "f", Verdict(rating="like")),
        DocumentUpserted(composed, "f", log.occurred_at, "words"),
        DocumentUpserted(decomposed, "f", later, "new words"),
    ]

    def folded(*more: StateEvent) -> FolderSet:
        records = [StateRecord(offset, 0, event, 1) for offset, event in enumerate((*events, *more))]
        return fold("f", records, Erasures([], ErasureRules((b"key",), timedelta(0))), SetLimits(), later)

    folder = folded()
    assert [document.text for document in folder.documents] == ["new words"]
    example = label(folder.logs[0], LabelWeights())
    assert example
    assert example.label == Label.LIKED
    assert [passage.document_id for passage in example.negatives] == ["two"]
    assert without_deleted(example, folded(DocumentDeleted(composed, "f", later + timedelta(hours=1)))) is None
