"""The unattended loop: what is asked when, its policy, and what its timeline says of a record."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from demo.corpus import Document, Pair
from demo.loop import LOOP_OPTIONS, Script
from demo.simulation import Simulator
from demo.timeline import entry_of
from foldtune.commands.errors import UserError
from foldtune.events import Block, ChatLog, Condition, FineTuneStatus, PolicyDecided, RuleFigures, State
from foldtune.settings import PolicySettings, Settings, settings_environment
from foldtune.topics import Topic

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DOCUMENTS = tuple(
    Document("small" if n % 5 == 0 else f"folder-{n % 2}", f"d{n}", f"title {n}", f"text {n}") for n in range(100)
)
PAIRS = tuple(Pair(f"question {n}", document) for n, document in enumerate(DOCUMENTS))


def test_each_question_is_asked_once_and_the_smallest_folder_is_watched() -> None:
    script = Script.of(PAIRS, 2)
    of_rounds = [pair for pairs in script.rounds for pair in pairs]

    assert script.watched == "small"
    assert [len(pairs) for pairs in script.rounds] == [40, 40]
    assert sorted(map(id, (*of_rounds, *script.before, *script.after))) == sorted(map(id, PAIRS))
    assert {pair.document.folder_id for pair in (*script.before, *script.after)} == {"small"}
    assert "small" not in {pair.document.folder_id for pair in of_rounds}


@pytest.mark.parametrize("asked", [PAIRS[1:2], [pair for pair in PAIRS if pair.document.folder_id == "small"]])
def test_too_few_questions_are_refused(asked: tuple[Pair, ...]) -> None:
    with pytest.raises(UserError, match="too few for 2 rounds"):
        Script.of(asked, 2)


def test_a_round_is_enough_for_one_training_and_what_it_leaves_is_not() -> None:
    script = Script.of(PAIRS, 2)
    growth, quality = script.policy(LOOP_OPTIONS).rules

    assert growth.new_examples == 28
    assert growth.data.folders == ("folder-0", "folder-1")
    assert quality.data.folders is None
    assert {rule.training.start for rule in (growth, quality)} == {"incumbent"}


def test_the_policy_reaches_the_worker_by_its_environment() -> None:
    policy = Script.of(PAIRS, 2).policy(LOOP_OPTIONS)
    text = settings_environment(Settings.model_construct(policy=policy))["FOLDTUNE_POLICY"]

    assert PolicySettings.model_validate(json.loads(text)) == policy


def test_logs_of_a_short_period_are_all_of_it() -> None:
    period = timedelta(seconds=5)
    rows = np.arange(100)[:, None]
    simulator = Simulator(DOCUMENTS, until=NOW, seed=0, period=period, first_log=1_000)
    events = simulator.events(PAIRS, rows, np.ones((100, 1), dtype=np.float32))
    logs = [event for event in events if isinstance(event, ChatLog)]

    assert all(NOW - period <= event.occurred_at <= NOW for event in events)
    assert [log.log_id for log in logs] == [f"log-{number:06}" for number in range(1_000, 1_100)]


def test_a_decision_is_told_once_with_what_was_met_and_what_was_in_the_way() -> None:
    met = Condition(condition="new_examples", met=True, figure=30, bound=28, text="30 of 28")
    rules = (
        RuleFigures(rule="growth", conditions=(met,), blocks=(Block(block="in_flight", text="r-1 has not ended"),)),
        RuleFigures(
            rule="quality",
            conditions=(Condition(condition="quality", met=False),),
            blocks=(Block(block="min_examples"),),
        ),
    )
    decided = PolicyDecided(model="m", at=NOW, decision="blocked", since=NOW, rule="growth", rules=rules).encode()

    assert entry_of(Topic.POLICY_DECISIONS.label, b"m/2026", decided) == {
        "event": "decided",
        "decision": "blocked",
        "rule": "growth",
        "request_id": None,
        "met": {"new_examples": "30 of 28"},
        "blocked_by": {"in_flight": "r-1 has not ended"},
    }
    assert entry_of(Topic.POLICY_DECISIONS.label, b"m", decided) is None


def test_a_model_that_was_not_promoted_is_told_with_the_reason() -> None:
    status = FineTuneStatus(
        request_id="r-1", model="m", state=State.COMPLETED, at=NOW, promoted=False, reasons=("may be chance",)
    ).encode()

    assert entry_of(Topic.FINE_TUNE_STATUS.label, b"m/r-1", status) == {
        "event": "status",
        "request_id": "r-1",
        "state": "completed",
        "promoted": False,
        "reasons": ["may be chance"],
    }
    assert entry_of(Topic.FINE_TUNE_STATUS.label, b"r-1", status) is None
