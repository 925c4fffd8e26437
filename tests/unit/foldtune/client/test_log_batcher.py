"""Logs are batched by count, by size and by time, and each goes to its folders."""

from datetime import UTC, datetime

import pytest

from foldtune.client.client import folders_of
from foldtune.client.log_batcher import ENVELOPE_BYTES, CompleteBatch, LogBatcher
from foldtune.events import ChatLog, ChatLogBatch, RetrievedPassage


def chat_log(number: int = 0, folder: str = "f", **fields: object) -> ChatLog:
    """A log of a folder."""
    moment = datetime(2025, 1, 2, tzinfo=UTC)
    return ChatLog.model_validate(
        {"log_id": f"l-{number}", "occurred_at": moment, "agent_id": "a", "question": "Why?", "folder_id": folder}
        | fields
    )


def batcher(count: int = 100, max_bytes: int = 100_000) -> LogBatcher:
    """A batcher whose logs linger for a minute."""
    return LogBatcher(count=count, max_bytes=max_bytes, linger=60)


def sizes(batches: list[CompleteBatch]) -> list[tuple[str, int]]:
    """Folder and number of logs of each batch."""
    return [(batch.folder_id, len(batch.logs)) for batch in batches]


def test_batches_are_complete_by_count_and_folder() -> None:
    batches = batcher(count=2)
    complete = [batch for n, folder in enumerate("aabab") for batch in batches.add(chat_log(n, folder), 10, now=0)]
    assert sizes(complete) == [("a", 2), ("b", 2)]
    assert sizes(batches.take()) == [("a", 1)]
    assert batches.take() == []


def test_batches_are_complete_by_size() -> None:
    batches = batcher(max_bytes=ENVELOPE_BYTES + 20)
    complete = [batch for number in range(5) for batch in batches.add(chat_log(number), 10, now=0)]
    assert sizes(complete + batches.take()) == [("f", 2), ("f", 2), ("f", 1)]
    assert [batch.size for batch in complete] == [20, 20]


def test_batches_are_complete_by_time() -> None:
    batches = batcher()
    batches.add(chat_log(folder="a"), 10, now=0)
    batches.add(chat_log(folder="b"), 10, now=30)
    batches.add(chat_log(folder="a"), 10, now=59)
    assert batches.next_due == 60
    assert batches.take(now=59) == []
    assert sizes(batches.take(now=60)) == [("a", 2)]
    assert batches.next_due == 90


def test_a_single_log_needs_no_envelope() -> None:
    batches = batcher()
    batches.add(chat_log(1), 10, now=0)
    [single] = batches.take()
    batches.add(chat_log(1), 10, now=0)
    batches.add(chat_log(2), 10, now=0)
    [pair] = batches.take()
    assert (type(single.event), type(pair.event)) == (ChatLog, ChatLogBatch)


def passage(document: str, folder: str, rank: int) -> RetrievedPassage:
    """A retrieved passage."""
    return RetrievedPassage(document_id=document, folder_id=folder, rank=rank)


@pytest.mark.parametrize(
    ("cited", "folders"),
    [(("d2",), ("g",)), (("d2", "d1"), ("f", "g")), ((), ("f",)), (("unknown",), ("f",)), (("d2", "d3"), ("g",))],
)
def test_a_log_belongs_to_the_folders_it_cites_else_to_that_of_the_top_passage(
    cited: tuple[str, ...], folders: tuple[str, ...]
) -> None:
    retrieved = (passage("d2", "g", 2), passage("d1", "f", 1), passage("d3", "g", 3))
    assert folders_of(chat_log(0, "h", retrieved=retrieved, cited_document_ids=cited)) == folders


def test_a_log_without_passages_stays_in_its_folder() -> None:
    assert folders_of(chat_log(0, "h")) == ("h",)
