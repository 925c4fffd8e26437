"""The form of a policy: what it makes of rules and of what is typed, and what happens when somebody else was faster."""

import html
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.policies import DecisionTable
from api.view.system import SystemView
from console.pages.differences import differences
from console.pages.policy_form import changed, check, count_of, fields_of, placed, rules_of
from foldtune.policy import QualityFall, Rule
from foldtune.settings import Settings
from foldtune.topics import Topic
from tests.unit.api.conftest import MemoryPublisher
from tests.unit.api.test_policies import explained, put

from .conftest import browser_of

__all__ = ["explained"]
EDIT = "/console/policies/support/edit"
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"name": "all", "new_examples": 5, "changed_documents": 0.1, "min_examples": 7, "monthly_trainings": 3},
    {"monthly_dollars": 1234.5, "cooldown": "1d 2h 3m 4s", "time_zone": "Europe/Berlin"},
    {"calendar": {"days": ["mon", "sun"], "at": "23:59"}, "quiet_hours": {"start": "22:00", "end": "06:00"}},
    {"quality": {"window": "14d", "baseline": "60d", "min_fall": 0.125, "chance": 0.0001}},
    {"data": {"folders": ["a/b <c>", ' "quoted"', "two\nlines", "{}"]}, "training": {"epochs": 5, "older_share": 0.2}},
)


@pytest.mark.parametrize("given", RULES)
def test_a_rule_comes_back_from_its_fields_as_it_was(given: dict[str, Any]) -> None:
    rule = Rule.model_validate(given)
    rules, errors = rules_of(fields_of((Rule(name="first"), rule)))
    assert errors == {}
    assert check(rules) == ((Rule(name="first"), rule), {})


def test_what_is_wrong_stands_beside_its_field() -> None:
    typed = {
        "name": "A B",
        "new_examples": "many",
        "calendar.days": "someday",
        "cooldown": "soon",
        "quiet_hours.start": "08:00",
        "quiet_hours.end": "08:00",
        "quality": "on",
        "quality.window": "1h",
        "knobs": '{"training": {"epochs": 0, "x": 1}}',
    }
    rules, errors = rules_of({f"rules.0.{name}": [value] for name, value in typed.items()})
    assert errors == {}
    found = placed(check(rules)[1])
    beside = {"name", "new_examples", "calendar.days", "cooldown", "quiet_hours.start", "quality.window", "knobs"}
    assert found.keys() == {f"rules.0.{name}" for name in beside}
    assert "epochs: Input should be greater than or equal to 1" in found["rules.0.knobs"]
    assert "x: unknown field" in found["rules.0.knobs"]
    for knobs in ("[1]", "{", "[" * 100_000, '{"name": "other"}'):
        assert rules_of({"rules.0.knobs": [knobs]})[1].keys() == {"rules.0.knobs"}


def test_rules_are_added_removed_and_put_before_others() -> None:
    fields = fields_of((Rule(name="one"), Rule(name="two"))) | {"comment": ["why"]}

    def names(fields: dict[str, list[str]]) -> list[str]:
        assert fields["comment"] == ["why"]
        return [fields[f"rules.{number}.name"][0] for number in range(count_of(fields))]

    assert names(changed(fields, "up-1")) == ["two", "one"]
    assert names(changed(fields, "remove-0")) == ["two"]
    assert names(changed(fields, "add")) == ["one", "two", "rule-1"]
    for nothing in ("", "up-0", "up-7", "remove-9", "remove-x", "remove-²"):
        assert names(changed(fields, nothing)) == ["one", "two"]


def test_differences_are_told_by_field() -> None:
    before = {"rules": [{"name": "a", "cooldown": timedelta(hours=6)}, {"name": "b"}], "paused": False}
    after = {"rules": [{"name": "b"}, {"name": "a", "cooldown": timedelta(hours=7)}], "paused": False, "by": ["x", "y"]}
    assert differences(before, after) == [("rules a.cooldown", "6h", "7h"), ("by", None, "x, y")]
    assert differences(None, {"name": "x"}) == [("name", None, "x")]


@pytest.mark.usefixtures("explained")
def test_a_model_gets_its_first_policy_and_only_from_operators(
    services: Services, settings: Settings, publisher: MemoryPublisher
) -> None:
    viewer, operator = (browser_of(services, settings, name) for name in ("viewer", "operator"))
    page = viewer.get("/console/policies/support")
    assert page.status_code == 404
    assert "no policy" in page.text
    assert EDIT not in page.text
    fields = fields_of((Rule(name="enough", new_examples=500),)) | {"etag": [""], "do": ["set"]}
    assert viewer.post(EDIT, data=fields).status_code == 403
    assert EDIT in operator.get("/console/policies/support").text
    assert operator.post(EDIT, data=fields, follow_redirects=False).headers["location"] == "/console/policies/support"
    [policy] = publisher.on(Topic.POLICIES)
    assert policy.rules == (Rule(name="enough", new_examples=500),)


@pytest.fixture
def operator(services: Services, settings: Settings, explained: DecisionTable) -> TestClient:
    del explained
    return browser_of(services, settings, "operator")


def test_what_is_typed_is_kept_and_its_changes_are_shown(
    operator: TestClient, view: SystemView, publisher: MemoryPublisher
) -> None:
    put(view, rules=(Rule(name="old", new_examples=10), Rule(name="gone", quality=QualityFall())))
    rule = Rule(name="old", new_examples=12, cooldown=timedelta(hours=12))
    fields = fields_of((rule,)) | {"comment": ["less often"]}
    compared = html.unescape(operator.post(EDIT, data={**fields, "do": "compare", "etag": '"0-0"'}).text)
    assert "rule old.new_examples" in compared
    assert "</span>10</del>" in compared
    assert "</span>12</ins>" in compared
    # It was the default.
    assert "</span>6h</del>" in compared
    assert 'value="less often"' in compared
    wrong = operator.post(EDIT, data={**fields, "rules.0.new_examples": "<b>", "do": "set", "etag": '"0-0"'})
    assert wrong.status_code == 400
    assert 'value="&lt;b&gt;"' in wrong.text
    assert 'aria-invalid="true"' in wrong.text
    doubled = operator.post(EDIT, data={**fields_of((Rule(), Rule())), "do": "set", "etag": '"0-0"'})
    assert doubled.status_code == 400
    assert "several rules have the name" in doubled.text
    assert publisher.on(Topic.POLICIES) == []
    page = operator.get("/console/policies/support").text
    assert "<code>new_examples</code></dt><dd>10</dd>" in page
    assert "<code>cooldown</code></dt><dd>6h</dd>" in page
    # A condition is one, also with all at its defaults.
    assert "<code>quality.window</code></dt><dd>7d</dd>" in page
    with_another = operator.post(EDIT, data={**fields, "do": "add", "etag": '"0-0"'}).text
    assert 'value="rule-1"' in with_another


def test_a_policy_that_somebody_else_has_set_meanwhile_is_not_replaced_unseen(
    operator: TestClient, view: SystemView, publisher: MemoryPublisher
) -> None:
    put(view, 1)
    assert "0-1" in operator.get(EDIT).text
    put(view, 2, by="bob", rules=(Rule(name="bobs"),))
    fields = fields_of((Rule(name="mine"),)) | {"do": ["set"]}
    for stale in ('"0-1"', "", "“0-2”"):
        late = operator.post(EDIT, data={**fields, "etag": stale})
        assert late.status_code in {412, 428}
        assert "Somebody else has set another policy" in late.text
        assert "bob" in late.text
        assert 'value="mine"' in late.text
        assert "bobs" in late.text
        assert "&#34;0-2&#34;" in late.text
    assert publisher.on(Topic.POLICIES) == []
    again = operator.post(EDIT, data={**fields, "etag": '"0-2"'}, follow_redirects=False)
    assert again.status_code == 303
    assert publisher.on(Topic.POLICIES)[0].rules == (Rule(name="mine"),)
