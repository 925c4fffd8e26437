"""A made history of training sets: three folders with every label, and every reason for which a log is no example."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from foldtune.settings import LabelWeights
from foldtune.topics import Topic
from streams.training_sets.state_events import (
    ChatLog,
    DocumentDeleted,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    RetrievedPassage,
    StateEvent,
    Verdict,
)

T = TypeVar("T")
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
# Unlabelled top passages count, too, from a score of .5 on.
WEIGHTS = LabelWeights(retrieved=0.3, retrieved_min_score=0.5)
TOPICS: dict[type[Any], Topic] = {
    ChatLog: Topic.CHAT_LOGS,
    Feedback: Topic.FEEDBACK,
    DocumentUpserted: Topic.DOCUMENTS,
    DocumentDeleted: Topic.DOCUMENTS,
    ErasureRequested: Topic.ERASURES,
}


def call_here(function: Callable[[], T]) -> T:
    """Call in this process."""
    return function()


def log(number: int, folder_id: str = "f", *, cited: str | None = "d1", score: float = 0.9, **fields: Any) -> ChatLog:
    defaults: dict[str, Any] = {
        "log_id": f"l{number}",
        "occurred_at": NOW - timedelta(hours=number),
        "agent_id": "a" if number % 3 else "b",
        "question": f"question {number}?",
        "retrieved": (
            RetrievedPassage(document_id="d1", folder_id=folder_id, rank=1, score=score),
            RetrievedPassage(document_id="d2", folder_id=folder_id, rank=2),
        ),
        "cited_document_ids": (cited,) if cited else (),
    }
    return ChatLog(folder_id=folder_id, **defaults | fields)


def history(seed: int, now: datetime = NOW) -> Iterator[StateEvent]:
    """Three folders with every label and every reason, versions, late and early verdicts, and erasures."""
    draw = random.Random(seed)
    ratings: list[Literal["like", "dislike"]] = ["like", "dislike"]
    for folder_id in ("f", "g", "h"):
        for number in range(4):
            yield DocumentUpserted(f"d{number}", folder_id, now - timedelta(days=9), f"text {number}")
        yield DocumentDeleted("d2", folder_id, now - timedelta(days=1))
        for number in range(60):
            cited = draw.choice([None, "d0", "d1", "d2", "elsewhere"])
            verdict = draw.choice([None, None, Verdict(rating="like"), Verdict(rating="dislike")])
            at = now - timedelta(days=draw.choice([0, 1, 5, 29, 31, 400]), hours=number)
            yield log(number, folder_id, cited=cited, score=draw.choice([0.1, 0.9]), occurred_at=at, feedback=verdict)
            if draw.random() < 0.3:
                verdict = Verdict(rating=draw.choice(ratings), correct_document_id=draw.choice([None, "d2", "d3"]))
                yield Feedback("b", at + timedelta(minutes=1), f"l{number}", folder_id, verdict)
            if draw.random() < 0.2:
                # A later version, and a copy.
                yield log(number, folder_id, occurred_at=at + timedelta(seconds=1), agent_id="c")
                yield log(number, folder_id, occurred_at=at + timedelta(seconds=1), agent_id="c")
        yield log(60, folder_id, occurred_at=now - timedelta(hours=1))
        yield Feedback("c", now - timedelta(days=3), "l60", folder_id, Verdict(rating="dislike"))
    yield ErasureRequested("e1", now, "document", "d3", folder_id="g")
    yield ErasureRequested("e2", now, "log", "l7")
