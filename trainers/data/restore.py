"""Events from a snapshot, for the day when the topics that it was made of are lost.

A snapshot holds what training needs. What it does not: answers, who asked, logs that nobody judged or cited, and every
passage's score. Erasures by user therefore do not find what was restored.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from foldtune.events import ChatLog, DocumentUpserted, Rating, RetrievedPassage, Verdict
from foldtune.snapshot_schema import Label


def documents(table: pa.Table, at: datetime) -> Iterator[DocumentUpserted]:
    """The documents of a snapshot (``snapshot_format.DOCUMENTS``), as of the snapshot's time."""
    for row in table.to_pylist():
        yield DocumentUpserted(occurred_at=at, **row)


def logs(table: pa.Table) -> Iterator[ChatLog]:
    """The examples of a snapshot (``snapshot_format.EXAMPLES``), as logs that make the same examples again."""
    for row in table.to_pylist():
        yield _log(row)


def _log(row: dict[str, Any]) -> ChatLog:
    label = Label(row["label"])
    named = [row["positive"], *row["negatives"]] if row["positive"] else row["negatives"]
    positive = row["positive"]["document_id"] if row["positive"] else None
    cited = {
        Label.CORRECTED: (),
        Label.LIKED: (positive,),
        Label.CITED: (positive,),
        Label.RETRIEVED: (),
        Label.DISLIKED: tuple(passage["document_id"] for passage in named),
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
        # A score lets through what was once let through by its own.
        retrieved=tuple(RetrievedPassage(**passage, rank=rank, score=1.0) for rank, passage in enumerate(named, 1)),
        cited_document_ids=cited,
        feedback=verdict() if verdict else None,
    )
