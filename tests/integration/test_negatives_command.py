"""``foldtune negatives explain``, of a job on the brokers whose snapshot is on the S3 server."""

import json

import pytest
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.kafka import Publisher
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from foldtune.topics import Topic
from tests.jobs import put_job
from tests.runbooks import tables
from trainers.model.base_models import packaged_minilm_folder

QUESTION = "what about the night ferry?"


def test_the_negatives_of_a_question_are_explained(
    settings: Settings, publisher: Publisher, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDTUNE_TRAINER__MODEL_FOLDERS", json.dumps([str(packaged_minilm_folder())]))
    publisher.publish(Topic.TRAINING_JOBS, put_job(S3ObjectStore(settings.s3), tables()), key="r")
    command = ["negatives", "explain", "r"]

    result = runner.invoke(app, [*command, QUESTION.upper(), "--nearest", "5", "--json"])
    assert result.exit_code == 0, result.output
    (found,) = (json.loads(line) for line in result.stdout.splitlines())
    assert found["question"] == QUESTION
    assert found["positive"].startswith("night ferry\n")
    assert "Internal runbook." in found["positive"]
    shown, *mined = found["candidates"]
    assert (shown["shown"], shown["verdict"], shown["chosen"]) == (True, "negative", True)
    assert "Public notice about the night ferry." in shown["passage"]
    assert [one["shown"] for one in mined] == [False] * 5
    # The other notices are nearer than the right runbook, and its own notice was shown already.
    assert {one["verdict"] for one in mined} == {"above_score_margin", "same_passage_twice", "known_positive"}
    assert all(-1 <= one["score"] <= 1 and 0 <= one["jaccard"] <= 1 for one in found["candidates"])

    table = runner.invoke(app, [*command, QUESTION]).stdout
    assert "negative, chosen" in table
    assert "known positive" in table

    unknown = runner.invoke(app, [*command, "what about the night fairy?"])
    assert unknown.exit_code == 2
    assert QUESTION in unknown.output
    nothing = runner.invoke(app, ["negatives", "explain", "other", QUESTION])
    assert "no training was started for a request 'other'" in nothing.output
