"""The label, strength, positive and negatives of a log with its feedback."""

from datetime import UTC, datetime
from typing import Any

import pytest

from foldtune.settings import LabelWeights
from foldtune.snapshot_schema import Label
from streams.snapshots.labels import label
from streams.training_sets.fold import JudgedLog
from streams.training_sets.state_events import ChatLog, RetrievedPassage, Verdict

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
