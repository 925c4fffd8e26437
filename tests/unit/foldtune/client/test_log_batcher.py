"""Logs are sent by count, by size and by time; a failed delivery is raised."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from foldtune.client.client import folders_of
from foldtune.client.log_batcher import ENVELOPE_BYTES, LogBatcher
from foldtune.errors import ClientClosedError, PublishError
from foldtune.events import ChatLog, ChatLogBatch, RetrievedPassage


def chat_log(number: int = 0, folder: str = "f", **fields: object) -> ChatLog:
    """A log of a folder."""
    moment = datetime(2025, 1, 2, tzinfo=UTC)
    return ChatLog.model_validate(
        {"log_id": f"l-{number}", "occurred_at": moment, "agent_id": "a", "question": "Why?", "folder_id": folder}
        | fields
    )


class Broker:
    """Records what is sent; fails on request."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self.error: Exception | None = None
        self.flushed = threading.Event()

    def send(self, folder_id: str, event: ChatLog | ChatLogBatch) -> None:
        self.sent.append((folder_id, len(event.logs) if isinstance(event, ChatLogBatch) else 1))

    def flush(self) -> None:
        self.flushed.set()
        if self.error:
            raise self.error


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def make(broker: Broker) -> Callable[..., LogBatcher]:
    def batcher(count: int = 100, max_bytes: int = 100_000, linger: float = 60) -> LogBatcher:
        return LogBatcher(broker.send, broker.flush, count=count, max_bytes=max_bytes, linger=linger)

    return batcher


def test_batches_are_sent_by_count_and_folder(make: Callable[..., LogBatcher], broker: Broker) -> None:
    batcher = make(count=2)
    for number, folder in enumerate("aabab"):
        batcher.add(chat_log(number, folder))
    assert broker.sent == [("a", 2), ("b", 2)]
    batcher.close()
    assert broker.sent == [("a", 2), ("b", 2), ("a", 1)]


def test_batches_are_sent_by_size(make: Callable[..., LogBatcher], broker: Broker) -> None:
    size = len(chat_log().encode()) + 1
    batcher = make(max_bytes=ENVELOPE_BYTES + 2 * size)
    for number in range(5):
        batcher.add(chat_log(number))
    batcher.flush()
    assert broker.sent == [("f", 2), ("f", 2), ("f", 1)]
    batcher.close()


def test_batches_are_sent_by_time(make: Callable[..., LogBatcher], broker: Broker) -> None:
    batcher = make(linger=0.01)
    batcher.add(chat_log())
    assert broker.flushed.wait(10)
    assert broker.sent == [("f", 1)]
    batcher.close()


@pytest.mark.parametrize("error", [PublishError("chat-logs", "no broker"), ValueError("a defect")])
def test_a_failure_in_the_background_is_raised_at_the_next_call(
    make: Callable[..., LogBatcher], broker: Broker, error: Exception
) -> None:
    broker.error = error
    batcher = make(linger=0.01)
    batcher.add(chat_log())
    assert broker.flushed.wait(10)
    with pytest.raises(type(error), match=str(error.args[-1])):
        batcher.close()


def test_a_closed_batcher_accepts_no_logs(make: Callable[..., LogBatcher]) -> None:
    batcher = make()
    batcher.close()
    with pytest.raises(ClientClosedError):
        batcher.add(chat_log())


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
