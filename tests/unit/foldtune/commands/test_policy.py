"""``foldtune policy``: what is published, and how a decision reads."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foldtune.cli import app
from foldtune.client.client import FoldtuneClient
from foldtune.events import Block, Condition, PolicyDecided, RetrainingPolicy, RuleFigures
from foldtune.policy import Rule

AT = datetime(2026, 1, 2, 12, tzinfo=UTC)
STORED = RetrainingPolicy(model="m", at=AT, by="settings", origin="settings", rules=(Rule(new_examples=5),))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[RetrainingPolicy]:
    events: list[RetrainingPolicy] = []
    monkeypatch.setattr(FoldtuneClient, "set_policy", lambda _, policy: events.append(policy))
    off = RetrainingPolicy(model="off", at=AT)
    monkeypatch.setattr(FoldtuneClient, "policies", lambda _: {"m": STORED, "off": off})
    return events


def test_a_policy_is_set_from_a_file(runner: CliRunner, published: list[RetrainingPolicy], tmp_path: Path) -> None:
    rules = [{"name": "weekly", "calendar": {"days": ["sat"]}, "data": {"folders": ["f"]}, "cooldown": "1d"}]
    (tmp_path / "p.json").write_text(json.dumps(rules))
    toml = "[[rules]]\nname = 'weekly'\ncalendar.days = ['sat']\ndata.folders = ['f']\ncooldown = '1d'\n"
    (tmp_path / "p.toml").write_text(toml)
    for name in ("p.json", "p.toml"):
        run = runner.invoke(app, ["policy", "set", "m", name, "--by", "ann", "--comment", "why"])
        assert run.exit_code == 0, run.output
    run = runner.invoke(app, ["policy", "set", "m", "-"], input='{"rules": [], "paused": true}')
    assert run.exit_code == 0, run.output
    first, second, third = published
    assert first.rules == second.rules == (Rule.model_validate(rules[0]),)
    assert (first.model, first.by, first.comment, first.origin) == ("m", "ann", "why", "person")
    assert first.rules[0].cooldown == timedelta(days=1)
    assert (third.rules, third.paused) == ((), True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{nope", "p.json: Expecting property name"),
        ("{}", "p.json: should have a list 'rules'"),
        ('{"rules": [], "model": "x"}', "p.json: unknown field 'model', should be rules or paused"),
        ('[{"new_examples": 0}]', "rules.0.new_examples: Input should be greater than 0"),
        ('[{"cooldown": "soon"}]', "rules.0.cooldown: Input should be a duration, for example 30s, 6h, 1d 12h or PT6H"),
        ('[{"name": "a"}, {"name": "a"}]', "rules: several rules have the name 'a'"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    runner: CliRunner, published: list[RetrainingPolicy], tmp_path: Path, content: str, reason: str
) -> None:
    (tmp_path / "p.json").write_text(content)
    run = runner.invoke(app, ["policy", "set", "m", "p.json"])
    assert (run.exit_code, published) == (2, [])
    assert reason in run.output


def test_a_pause_keeps_what_the_policy_says(runner: CliRunner, published: list[RetrainingPolicy]) -> None:
    for command in ("pause", "resume", "reset"):
        run = runner.invoke(app, ["policy", command, "m", "--by", "ann"])
        assert run.exit_code == 0, run.output
    paused, resumed, reset = published
    assert (paused.paused, paused.rules, paused.origin, paused.by) == (True, STORED.rules, "settings", "ann")
    assert (resumed.paused, resumed.rules) == (False, STORED.rules)
    assert (reset.origin, reset.rules) == ("settings", ())
    unknown = runner.invoke(app, ["policy", "pause", "x"])
    assert (unknown.exit_code, len(published)) == (2, 3)
    assert "model 'x' has no policy" in unknown.output


def test_policies_are_shown(runner: CliRunner, published: list[RetrainingPolicy]) -> None:
    run = runner.invoke(app, ["policy", "show"])
    assert [word in run.output for word in ("settings", '{"new_examples": 5}', "off")] == [True] * 3
    run = runner.invoke(app, ["policy", "show", "m", "--json"])
    assert RetrainingPolicy.model_validate_json(run.output) == STORED
    assert not published
    assert runner.invoke(app, ["policy", "show", "x"]).exit_code == 2


def test_a_decision_is_explained(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = Condition(
        condition="new_examples", met=True, figure=12, bound=10, since=AT, text="12 of 10 new labelled examples"
    )
    block = Block(block="cooldown", until=AT + timedelta(hours=5), text="1h of 6h since request auto-1")
    fields: dict[str, Any] = {"model": "m", "since": AT, "rule": "weekly"}
    before = PolicyDecided(at=AT, decision="requested", request_id="auto-1", **fields)
    figures = (RuleFigures(rule="weekly", conditions=(condition,), blocks=(block,)),)
    decided = PolicyDecided(at=AT, decision="blocked", rules=figures, next_at=block.until, **fields)
    monkeypatch.setattr(FoldtuneClient, "policy_decisions", lambda _, model: [before, decided] if model == "m" else [])
    run = runner.invoke(app, ["policy", "explain", "m", "--last", "2"])
    assert run.output.splitlines() == [
        "m: requested by rule weekly, request auto-1, since 2026-01-02T12:00+00:00",
        "m: blocked by rule weekly, since 2026-01-02T12:00+00:00",
        "rule weekly",
        "  met: 12 of 10 new labelled examples, since 2026-01-02T12:00+00:00",
        "  cooldown: 1h of 6h since request auto-1, until 2026-01-02T17:00+00:00",
        "may change at 2026-01-02T17:00+00:00",
        "figures of 2026-01-02T12:00:00+00:00",
    ]
    assert runner.invoke(app, ["policy", "explain", "m", "--json"]).output == decided.encode().decode() + "\n"
    assert runner.invoke(app, ["policy", "explain", "x"]).exit_code == 2
