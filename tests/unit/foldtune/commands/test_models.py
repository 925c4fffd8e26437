"""``foldtune models``, by what a training has written beside its model."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.client.client import FoldtuneClient
from foldtune.commands import models
from foldtune.events import FineTuneStatus, ModelReady, State, now
from foldtune.snapshot_schema import EVALUATION
from foldtune.testing import MemoryObjectStore

LOG = {
    "log_id": "l",
    "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
    "folder_id": "f",
    "agent_id": "a",
    "conversation_id": None,
}
GAINS = {"lost most": -0.7, "lost": -0.2, "the same": 0.0, "won": 0.1, "won most": 0.9}


def row(question: str, gain: float) -> dict[str, Any]:
    found = [{"folder_id": "f", "document_id": f"for {question}", "score": 0.5}]
    return {
        **{"question": question, "logs": [LOG], "before": [], "after": found},
        **{"rank_before": None, "rank_after": 2, "gain": gain},
    }


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryObjectStore:
    """The bucket of the announced model ``m``."""
    store = MemoryObjectStore()
    fields: dict[str, Any] = {"model": "m", "model_uri": store.uri("models/m/1/runs/x")}
    ready = ModelReady.model_construct(**fields)
    monkeypatch.setattr(FoldtuneClient, "models", lambda _: {"m": ready})
    monkeypatch.setattr(models, "S3ObjectStore", lambda _: store)
    return store


@pytest.fixture
def evaluated(store: MemoryObjectStore) -> None:
    """As the trainer writes it, by gain."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row(*item) for item in GAINS.items()], EVALUATION), buffer)
    store.put("models/m/1/runs/x/evaluation.parquet", buffer.getvalue())


@pytest.mark.usefixtures("evaluated")
def test_the_questions_that_lost_and_gained_most_are_shown(runner: CliRunner) -> None:
    result = runner.invoke(app, ["models", "m", "--questions", "1", "--json"])
    assert result.exit_code == 0, result.output
    lost, gained = map(json.loads, result.output.splitlines())
    assert (lost["question"], gained["question"]) == ("lost most", "won most")
    assert lost["after"][0]["document_id"] == "for lost most"
    # Who asked is not shown.
    assert "logs" not in lost
    table = runner.invoke(app, ["models", "m"]).output
    assert [name for name in GAINS if f" {name} " in table] == ["lost most", "lost", "won", "won most"]
    assert "- → 2" in table


@pytest.mark.usefixtures("evaluated")
def test_the_questions_of_a_version_that_was_not_promoted_are_shown(
    runner: CliRunner, store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"model": "n", "state": State.COMPLETED, "at": now()}
    statuses = {
        ("n", "r"): FineTuneStatus(request_id="r", model_uri=store.uri("models/m/1/runs/x"), **fields),
        ("n", "failed"): FineTuneStatus(request_id="failed", **fields | {"state": State.FAILED}),
    }
    monkeypatch.setattr(FoldtuneClient, "requests", lambda _: statuses)
    assert "lost most" in runner.invoke(app, ["models", "n", "--request", "r"]).output
    for options, words in (
        (["n", "--request", "failed"], "'failed' of n is failed, and has no version"),
        (["m", "--request", "r"], "model m has no request 'r'"),
        (["--request", "r"], "--request needs a model"),
    ):
        result = runner.invoke(app, ["models", *options])
        assert (result.exit_code, words in result.stderr) == (2, True), result.output


def test_what_cannot_be_shown_is_said(runner: CliRunner, store: MemoryObjectStore) -> None:
    for name, words in (("m", f"{store.uri('models/m/1/runs/x')} has no evaluation.parquet"), ("n", "no version of n")):
        result = runner.invoke(app, ["models", name])
        assert result.exit_code == 2
        assert words in result.stderr
