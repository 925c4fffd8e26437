"""``foldtune erase`` without servers: what it publishes, what it refuses and what its dry run counts."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.events import (
    ChatLog,
    ChatLogBatch,
    DocumentDeleted,
    DocumentUpserted,
    ErasureConfirmed,
    ErasureRequested,
    Event,
    Feedback,
    RetrievedPassage,
    Verdict,
)
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.commands import erase as erase_command
from streams.training_sets import erasure_preview
from streams.training_sets.erasure_preview import AffectedIds, preview_erasure

T0 = datetime(2025, 1, 2, tzinfo=UTC)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[ErasureRequested]:
    """The erasures that the command publishes."""
    events: list[ErasureRequested] = []
    monkeypatch.setattr("foldtune.client.client.FoldtuneClient.erase", lambda _self, event: events.append(event))
    return events


@pytest.mark.parametrize(
    ("options", "subject", "folder_id"),
    [
        (["--user", "u 1"], "user", None),
        (["--user", "u 1", "--folder", "f"], "user", "f"),
        (["--log", "u 1"], "log", None),
        (["--conversation", "u 1"], "conversation", None),
        (["--agent", "u 1"], "agent", None),
        (["--folder", "u 1"], "folder", None),
        (["--document", "u 1", "--folder", "f"], "document", "f"),
        (["--document", "u 1", "--all-folders"], "document", None),
    ],
)
def test_each_subject_can_be_erased(
    runner: CliRunner, published: list[ErasureRequested], options: list[str], subject: str, folder_id: str | None
) -> None:
    command = ["erase", *options, "--before", "2025-01-02", "--yes"]
    results = [runner.invoke(app, command) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0]
    assert (published[0].subject, published[0].subject_id, published[0].occurred_at) == (subject, "u 1", T0)
    assert published[0].folder_id == folder_id
    # Of the same subject and time, and its id is not made of them: it stays, and the subject could be guessed.
    assert published[0] == published[1].model_copy(update={"erasure_id": published[0].erasure_id})
    assert published[0].erasure_id != published[1].erasure_id
    assert published[0].erasure_id in results[0].stdout


def test_the_default_time_is_now(runner: CliRunner, published: list[ErasureRequested]) -> None:
    before = datetime.now(UTC)
    assert runner.invoke(app, ["erase", "--user", "u"], input="y\n").exit_code == 0
    assert before <= published[0].occurred_at <= datetime.now(UTC)


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_nothing_is_published_without_confirmation(
    runner: CliRunner,
    published: list[ErasureRequested],
    answer: str,
) -> None:
    result = runner.invoke(app, ["erase", "--user", "u\x1b[2J"], input=answer)
    assert (result.exit_code, published) == (1, [])
    assert "Erase user 'u\\x1b[2J', up to" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give one of --user, --log, --conversation, --agent and --document"),
        (["--user", "u", "--log", "l"], "give one of --user, --log, --conversation, --agent and --document"),
        (["--document", "d"], "--document needs --folder or --all-folders"),
        (["--document", "d", "--folder", "f", "--all-folders"], "--document needs --folder or --all-folders"),
        (["--user", "u", "--all-folders"], "--document needs --folder or --all-folders"),
        (["--folder", ""], "subject_id"),
        (["--user", ""], "subject_id"),
        (["--user", "u" * 257], "subject_id"),
        (["--user", "\udcff"], "subject_id"),
        (["--user", "u", "--before", "yesterday"], "'yesterday' is not a timestamp"),
        (["--user", "u", "--before", "9999-01-01"], "lies more than"),
        (["--user", "u", "--before", "1969-01-01"], "lies before 1970"),
    ],
)
def test_invalid_options_are_explained(runner: CliRunner, options: list[str], message: str) -> None:
    result = runner.invoke(app, ["erase", *options, "--yes"])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


# ── What an erasure covers ───────────────────────────────────────────────────────────────────────────────────────────


def log(number: int, *, folder: str = "f", user: str = "u", at: datetime = T0) -> ChatLog:
    """A log with the text of one passage, and another passage without."""
    passages = [("d1", "A text."), ("d2", None)]
    return ChatLog(
        log_id=f"l{number}",
        occurred_at=at,
        agent_id="a",
        conversation_id="c",
        user_id=user,
        question="Why?",
        folder_id=folder,
        retrieved=tuple(
            RetrievedPassage(document_id=name, folder_id=folder, rank=rank, text=text)
            for rank, (name, text) in enumerate(passages, start=1)
        ),
    )


def verdict(number: int) -> Feedback:
    """A verdict on a log."""
    wrong = Verdict(correct_document_id="d1")
    return Feedback(feedback_id=f"b{number}", occurred_at=T0, log_id=f"l{number}", folder_id="f", verdict=wrong)


def document(name: str, folder: str = "f", at: datetime = T0) -> DocumentUpserted:
    """A passage."""
    return DocumentUpserted(document_id=name, folder_id=folder, occurred_at=at, text="A text.")


TOPICS: dict[Topic, list[Event | bytes]] = {
    Topic.CHAT_LOGS: [
        ChatLogBatch(folder_id="f", logs=(log(1), log(2, user="v"))),
        # A duplicate.
        log(1),
        log(3, folder="g", at=T0 + timedelta(days=1)),
        b"{poison",
    ],
    Topic.FEEDBACK: [verdict(1), verdict(1), verdict(2)],
    Topic.DOCUMENTS: [
        document("d1"),
        document("d1", at=T0 - timedelta(days=1)),
        document("d1", "g", at=T0 + timedelta(days=1)),
        document("d2"),
        DocumentDeleted(document_id="d1", folder_id="f", occurred_at=T0),
    ],
}


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the data topics by ``TOPICS``."""

    at = int((T0 + timedelta(days=10)).timestamp() * 1000)

    def read(_settings: object, topic: Topic) -> Iterator[Any]:
        for offset, event in enumerate(TOPICS[topic]):
            value = event if isinstance(event, bytes) else event.encode()
            yield SimpleNamespace(partition=0, offset=offset, value=value, timestamp=at)

    monkeypatch.setattr(erasure_preview, "read", read)


@pytest.mark.parametrize(
    ("subject", "name", "days", "covered"),
    [
        ("user", "u", 0, {"f": AffectedIds(logs={"l1"}, passages={("l1", "d1")})}),
        (
            "user",
            "u",
            1,
            {
                "f": AffectedIds(logs={"l1"}, passages={("l1", "d1")}),
                "g": AffectedIds(logs={"l3"}, passages={("l3", "d1")}),
            },
        ),
        ("user", "u", -1, {}),
        ("user", "d1", 1, {}),
        ("log", "l1", 0, {"f": AffectedIds(logs={"l1"}, feedback={"l1"}, passages={("l1", "d1")})}),
        ("conversation", "c", 0, {"f": AffectedIds(logs={"l1", "l2"}, passages={("l1", "d1"), ("l2", "d1")})}),
        ("document", "d1", 0, {"f": AffectedIds(documents={"d1"}, passages={("l1", "d1"), ("l2", "d1")})}),
        ("document", "d2", 0, {"f": AffectedIds(documents={"d2"})}),
    ],
)
def test_the_preview_of_an_erasure(
    topics: None, subject: str, name: str, days: int, covered: dict[str, AffectedIds]
) -> None:
    content = {"erasure_id": "e", "occurred_at": T0 + timedelta(days=days), "subject": subject, "subject_id": name}
    assert preview_erasure(ErasureRequested.model_validate(content), Settings()) == covered


def test_a_dry_run_counts_and_publishes_nothing(
    runner: CliRunner,
    topics: None,
    published: list[ErasureRequested],
) -> None:
    shown = runner.invoke(app, ["erase", "--conversation", "c", "--dry-run"]).stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert rows == [["f", "2", "0", "0", "2"], ["g", "1", "0", "0", "1"]]
    assert "nothing" in runner.invoke(app, ["erase", "--user", "nobody", "--dry-run"]).stdout
    assert published == []


# ── Who has confirmed it ─────────────────────────────────────────────────────────────────────────────────────────────


def confirmed(partition: int, erasure_id: str = "e", app_id: str = "foldtune") -> bytes:
    at = T0 + timedelta(minutes=partition)
    return ErasureConfirmed(
        erasure_id=erasure_id, app_id=app_id, partition=partition, at=at, records=7, compacted_by=at + timedelta(days=3)
    ).encode()


ALL = [confirmed(partition) for partition in range(4)]


@pytest.mark.parametrize("wait", ["0", "60"])
@pytest.mark.parametrize(
    ("records", "missing"),
    [
        ([], "4 of 4"),
        ([*ALL[:3], ALL[0], confirmed(3, "other"), b"poison"], "1 of 4"),
        (ALL, None),
        # Workers with another app_id have sets of their own.
        ([confirmed(0, app_id="second"), *ALL], "3 of 4"),
    ],
)
def test_an_erasure_is_complete_when_every_partition_has_confirmed_it(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, records: list[bytes], missing: str | None, wait: str
) -> None:
    def read(*_: object, follow: bool, deadline: float | None) -> Iterator[Any]:
        assert follow == (deadline is not None) == (wait != "0")
        return (SimpleNamespace(value=value) for value in records)

    monkeypatch.setattr(erase_command, "read", read)
    result = runner.invoke(app, ["erase", "--status", "e", "--wait", wait])
    assert result.exit_code == (1 if missing else 0)
    assert (
        f"{missing} partitions have not" if missing else "compacted by the brokers by 2025-01-05 00:03"
    ) in result.stdout
    assert ("is its id right" in result.stdout) == (missing == "4 of 4")
