"""Disaster recovery: events from a snapshot, after the topics that it was exported from are lost.

A snapshot has only what training needs: no answers, no user ids, no passage scores, and no logs without a label.
Erasures by user therefore do not reach restored logs.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from foldtune.events import ChatLog, DocumentUpserted, Rating, RetrievedPassage, Verdict
from foldtune.snapshot_schema import Label


def documents(table: pa.Table, at: datetime) -> Iterator[DocumentUpserted]:
    """Events for a table with the schema ``DOCUMENTS``; they occurred ``at`` the snapshot's time."""
    for row in table.to_pylist():
        yield DocumentUpserted(occurred_at=at, **row)


def logs(table: pa.Table) -> Iterator[ChatLog]:
    """Logs for a table with the schema ``EXAMPLES``; an export makes the same examples of them."""
    for row in table.to_pylist():
        yield _log(row)


def _log(row: dict[str, Any]) -> ChatLog:
    label = Label(row["label"])
    passages = [row["positive"], *row["negatives"]] if row["positive"] else row["negatives"]
    positive = row["positive"]["document_id"] if row["positive"] else None
    cited = {
        Label.CORRECTED: (),
        Label.LIKED: (positive,),
        Label.CITED: (positive,),
        Label.RETRIEVED: (),
        Label.DISLIKED: tuple(passage["document_id"] for passage in passages),
    }[label]
    verdict = {
        Label.CORRECTED: lambda: Verdict(correct_document_id=positive),
        Label.LIKED: lambda: Verdict(rating=Rating.LIKE),
        Label.DISLIKED: lambda: Verdict(rating=Rating.DISLIKE),
    }.get(label)
    return ChatLog(
        log_id=row["log_id"],
        occurred_at=row["occurred_at"],
        agent_id=row["agent_id"],
        conversation_id=row["conversation_id"],
        question=row["question"],
        folder_id=row["folder_id"],
        # Replaces the lost score, which was at least retrieved_min_score.
        retrieved=tuple(RetrievedPassage(**passage, rank=rank, score=1.0) for rank, passage in enumerate(passages, 1)),
        cited_document_ids=cited,
        feedback=verdict() if verdict else None,
    )
