"""Restored events make the same snapshot again."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from foldtune.events import DocumentUpserted
from foldtune.settings import LabelWeights
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES, Label
from streams.snapshots.export_child import example_row
from streams.snapshots.labels import label
from streams.training_sets import state_events
from streams.training_sets.fold import JudgedLog
from streams.training_sets.state_events import Verdict
from trainers.data import restore

STRENGTHS = LabelWeights(retrieved=0.2, retrieved_min_score=0.5)
RETRIEVED = tuple(
    state_events.RetrievedPassage(
        document_id=name, folder_id="g" if name == "far" else "f", rank=rank, score=1 / rank, text=text
    )
    for rank, (name, text) in enumerate([("one", "Text."), ("two", None), ("far", "Afar."), ("four", None)], 1)
)


@pytest.mark.parametrize(
    ("verdict", "cited", "kind"),
    [
        (None, ("four", "two"), Label.CITED),
        (None, ("far",), Label.CITED),
        (None, (), Label.RETRIEVED),
        (Verdict(rating="like"), ("two",), Label.LIKED),
        (Verdict(rating="dislike"), ("four", "two"), Label.DISLIKED),
        (Verdict(correct_document_id="far"), ("two",), Label.CORRECTED),
        (Verdict(correct_document_id="never shown"), (), Label.CORRECTED),
    ],
)
def test_a_restored_log_makes_the_same_example(verdict: Verdict | None, cited: tuple[str, ...], kind: Label) -> None:
    log = state_events.ChatLog(
        log_id="l",
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        agent_id="a",
        question="how?",
        folder_id="f",
        retrieved=RETRIEVED,
        cited_document_ids=cited,
    )
    before = label(JudgedLog(log, verdict), STRENGTHS)
    assert before
    assert before.label is kind
    (event,) = restore.logs(pa.Table.from_pylist([example_row(before)], EXAMPLES))
    again = msgspec.json.decode(event.encode(), type=state_events.ChatLog)
    after = label(JudgedLog(again, again.feedback), STRENGTHS)
    assert after
    assert example_row(after) == example_row(before)


def test_restored_documents_have_the_time_of_the_snapshot() -> None:
    at = datetime(2026, 2, 1, tzinfo=UTC)
    row: dict[str, Any] = {"folder_id": "f", "document_id": "d", "title": "T", "text": "Text."}
    (event,) = restore.documents(pa.Table.from_pylist([row], DOCUMENTS), at)
    assert event == DocumentUpserted(occurred_at=at, **row)
