"""``/policies``: set, paused, and explained."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.policies import MAX_CHANGES, DecisionTable
from api.view.system import SystemView
from foldtune.events import Block, Condition, PolicyDecided, RetrainingPolicy, RuleFigures
from foldtune.policy import MAX_POLICY_BYTES, Rule, RuleData
from foldtune.testing import FakeClock
from foldtune.topics import Topic

from .conftest import MemoryPublisher, Record, client_of

START = datetime(2026, 3, 1, tzinfo=UTC)
RULES: dict[str, Any] = {"rules": [{"name": "weekly", "calendar": {"days": ["mon"]}, "cooldown": "6h"}]}


def put(view: SystemView, offset: int = 0, **fields: Any) -> None:
    """A policy on the topic, by default of ``support``."""
    others: dict[str, Any] = {"model": "support", "at": START, "by": "ada", "rules": (Rule(),)}
    policy = RetrainingPolicy(**others | fields)
    view.apply_policy(Record(policy.encode(), offset))


def decided(at: datetime, decision: str = "blocked", **fields: Any) -> PolicyDecided:
    condition = Condition(
        condition="new_examples", met=True, figure=1200, bound=1000, since=START, text="1,200 of 1,000 new examples"
    )
    block = Block(block="cooldown", until=START + timedelta(hours=6), text="1h of 6h")
    rules = (RuleFigures(rule="default", conditions=(condition,), blocks=(block,)),)
    others: dict[str, Any] = {"since": START, "rule": "default", "rules": rules, "next_at": START + timedelta(hours=6)}
    others["model"] = "support"
    return PolicyDecided(at=at, decision=decision, **others | fields)


def test_a_policy_that_is_gone_from_the_topic_is_gone_here(client: TestClient, view: SystemView) -> None:
    put(view, 3)
    for gone in (Record(b"", 2, key=b"support"), Record(b"", 4, partition=1, key=b"support"), Record(b"", 4)):
        view.policies.forget(gone)
    assert client.get("/policies/support").status_code == 200
    view.policies.forget(Record(b"", 4, key=b"support"))
    assert client.get("/policies/support").status_code == 404
    assert client.put("/policies/support", json=RULES).status_code == 200


def test_a_decision_of_a_time_without_a_zone_is_refused(view: SystemView) -> None:
    value = decided(START).encode().replace(b'"at":"2026-03-01T00:00:00Z"', b'"at":"2026-03-01T00:00:00"')
    view._decisions.apply(Record(decided(START).encode()))
    with pytest.raises(ValueError, match="timezone"):
        view._decisions.apply(Record(value))


@pytest.mark.parametrize("part", [{"rules": "x"}, {"since": 5}, {"rules": [{"rule": "a", "conditions": [None]}]}])
def test_a_decision_that_is_none_is_not_kept(view: SystemView, part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        view._decisions.apply(Record(json.dumps(json.loads(decided(START).encode()) | part).encode()))
    assert view._decisions.newest("support") is None


@pytest.fixture
def explained(view: SystemView, monkeypatch: pytest.MonkeyPatch) -> DecisionTable:
    """The decisions, as if their topic had been read to its end."""
    monkeypatch.setattr(SystemView, "decisions", view._decisions)
    return view._decisions


def test_a_policy_is_set_after_it_is_audited(client: TestClient, publisher: MemoryPublisher) -> None:
    answer = client.put("/policies/support", json={**RULES, "comment": "once a week"})
    assert answer.status_code == 200
    assert [topic for topic, _, _ in publisher.events] == [Topic.AUDIT, Topic.POLICIES]
    [policy] = publisher.on(Topic.POLICIES)
    assert isinstance(policy, RetrainingPolicy)
    assert (policy.model, policy.by, policy.origin, policy.comment) == ("support", "anybody", "person", "once a week")
    assert policy.rules[0].cooldown == timedelta(hours=6)
    assert publisher.events[1][2] == "support"
    [entry] = publisher.audited
    assert (entry.action, entry.target, entry.model, entry.before) == ("policy.set", "support", "support", None)
    assert entry.after
    assert entry.after["rules"][0]["name"] == "weekly"
    seen = client.get("/policies/support")
    assert (seen.content, seen.headers["etag"]) == (answer.content, answer.headers["etag"])


def test_a_policy_is_replaced_by_whoever_has_seen_it(
    client: TestClient, view: SystemView, publisher: MemoryPublisher
) -> None:
    put(view, 7)
    missing = client.put("/policies/support", json=RULES)
    assert (missing.status_code, missing.json()["errors"][0][:9]) == (428, "if-match:")
    stale = client.put("/policies/support", json=RULES, headers={"If-Match": '"0-6"'})
    assert (stale.status_code, stale.headers["etag"]) == (412, '"0-7"')
    assert not publisher.events
    # The next offset of the broker is above the record's.
    publisher.events.extend([(Topic.AUDIT, RetrainingPolicy(model="m", at=START), "")] * 8)
    replaced = client.put("/policies/support", json=RULES, headers={"If-Match": '"0-7"'})
    assert replaced.status_code == 200
    assert client.get("/policies/support").headers["etag"] == replaced.headers["etag"] != '"0-7"'
    again = client.put("/policies/support", json=RULES, headers={"If-Match": '"0-7"'})
    assert again.status_code == 412
    [_, entry] = publisher.audited[-2:]
    assert entry.before
    assert (entry.before["by"], entry.before["rules"]) == ("ada", [{"new_examples": 1000}])


def test_the_first_policy_of_a_model_replaces_none(client: TestClient, publisher: MemoryPublisher) -> None:
    assert client.put("/policies/support", json=RULES, headers={"If-Match": "*"}).status_code == 412
    assert not publisher.events


def test_a_policy_that_is_known_is_not_sent_again(client: TestClient, view: SystemView) -> None:
    put(view, 3)
    answer = client.get("/policies/support", headers={"If-None-Match": 'W/"0-3"'})
    assert (answer.status_code, answer.content) == (304, b"")
    assert client.get("/policies/sales").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "rules"),
        ({"rules": [{"cooldown": "soon"}]}, "rules.0.cooldown"),
        ({"rules": [{"cooldown": "400d"}]}, "rules.0.cooldown"),
        ({"rules": [{"data": {"folders": []}}]}, "rules.0.data.folders"),
        ({"rules": [{"folder": ["a"]}]}, "rules.0.folder"),
        ({"rules": [{}, {}]}, "rules"),
        ({"rules": [{"training": {"epochs": 1000}}]}, "rules.0.training.epochs"),
        ({"rules": [], "comment": "x" * 1001}, "comment"),
    ],
)
def test_an_invalid_policy_is_refused_by_the_name_of_its_field(
    client: TestClient, publisher: MemoryPublisher, body: dict[str, Any], field: str
) -> None:
    answer = client.put("/policies/support", json=body)
    assert answer.status_code == 400
    assert field in [each["name"] for each in answer.json()["fields"]]
    assert not publisher.events


def test_a_policy_that_workers_would_not_take_is_refused(client: TestClient, publisher: MemoryPublisher) -> None:
    rules = [{"name": f"r{number}", "data": {"folders": ["x" * 200]}} for number in range(20)]
    body = {"rules": rules, "comment": "y" * 1000}
    assert client.put("/policies/support", json=body).status_code == 200
    folders = [f"{number:0200}" for number in range(63)]
    large = {
        "rules": [{"name": f"r{number}", "data": {"folders": folders}} for number in range(20)],
        "comment": "y" * 1000,
    }
    answer = client.put("/policies/other", json=large)
    assert answer.status_code == 400
    # With the name of whoever pauses it, workers still take it.
    assert f"at most {MAX_POLICY_BYTES - 2048}" in answer.json()["errors"][0]
    assert len(publisher.on(Topic.POLICIES)) == 1


def test_a_policy_may_name_more_folders_than_a_request(client: TestClient, publisher: MemoryPublisher) -> None:
    rules = [{"name": f"r{number}", "data": {"folders": [f"{number}-{n}" for n in range(700)]}} for number in range(15)]
    assert client.put("/policies/support", json={"rules": rules}).status_code == 200
    [entry] = publisher.audited
    assert entry.folders
    assert len(entry.folders) == 10_000


def test_a_pause_that_workers_would_not_take_is_refused(
    client: TestClient, view: SystemView, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(view)
    monkeypatch.setattr("api.routes.policies.MAX_POLICY_BYTES", 100)
    assert client.post("/policies/support/pause").status_code == 400
    assert not publisher.events


def test_a_paused_policy_keeps_its_rules(client: TestClient, view: SystemView, publisher: MemoryPublisher) -> None:
    put(view, -1, origin="settings")
    paused = client.post("/policies/support/pause").json()
    assert (paused["paused"], paused["by"], paused["rules"][0]["new_examples"]) == (True, "anybody", 1000)
    # The settings still count for what it says.
    assert paused["origin"] == "settings"
    assert client.post("/policies/support/pause").json() == paused
    assert [event.paused for event in publisher.on(Topic.POLICIES)] == [True]
    assert client.post("/policies/support/resume").json()["paused"] is False
    assert [(entry.action, entry.target) for entry in publisher.audited] == [
        ("policy.pause", "support"),
        ("policy.resume", "support"),
    ]
    assert client.post("/policies/sales/pause").status_code == 404


def test_a_policy_is_not_changed_where_it_cannot_be_audited(
    client: TestClient, view: SystemView, publisher: MemoryPublisher
) -> None:
    put(view)
    publisher.broken = True
    assert client.post("/policies/support/pause").status_code == 503
    assert client.get("/policies/support").json().get("paused") is not True


def test_a_grant_for_folders_changes_no_policy_of_others(
    services: Services, view: SystemView, publisher: MemoryPublisher
) -> None:
    client = client_of(services, "of-handbook")
    assert client.put("/policies/support", json=RULES).status_code == 403
    own = {"rules": [{"data": {"folders": ["handbook"]}}]}
    put(view, rules=(Rule(data=RuleData(folders=("pricing",))),))
    assert client.put("/policies/support", json=own, headers={"If-Match": '"0-0"'}).status_code == 403
    assert client.post("/policies/support/pause").status_code == 403
    assert not publisher.events
    assert client.put("/policies/sales", json=own).status_code == 200
    assert client_of(services, "of-support").put("/policies/sales", json=own).status_code == 403


def test_a_grant_for_folders_reads_no_policy_of_others(
    services: Services, view: SystemView, explained: DecisionTable
) -> None:
    client = client_of(services, "of-handbook")
    put(view, rules=(Rule(data=RuleData(folders=("pricing",))),))
    put(view, model="own", rules=(Rule(data=RuleData(folders=("handbook",))),))
    for model in ("support", "own"):
        explained.apply(Record(decided(START, model=model).encode(), key=f"{model}/{START}".encode()))
    assert [client.get(f"/policies/support{path}").status_code for path in ("", "/explain")] == [403, 403]
    assert [client.get(f"/policies/none{path}").status_code for path in ("", "/explain")] == [404, 403]
    assert client.get("/policies/own").status_code == 200
    found = client.get("/policies/own/explain").json()
    # What was decided earlier may have been about other folders.
    assert (found["decision"]["model"], found["changes"]) == ("own", [])
    assert [item["policy"]["model"] for item in client.get("/policies").json()["items"]] == ["own"]


def test_what_workers_would_not_take_is_no_policy_here(view: SystemView) -> None:
    view._partitions[Topic.POLICIES] = 8
    with pytest.raises(ValueError, match="partition"):
        put(view, model="a-model-of-another-partition")
    with pytest.raises(ValueError, match="rules"):
        view.apply_policy(Record(b'{"model": "support", "at": "2026-03-01T00:00:00Z", "rules": [{}, {}]}'))
    assert view.policies.get("support") is None


def test_a_repeated_policy_does_not_replace_a_later_one(view: SystemView) -> None:
    for offset in (0, 1, 0):
        put(view, offset, by=f"b{offset}")
    entry = view.policies.get("support")
    assert entry
    assert entry.policy.by == "b1"


def test_policies_are_listed_by_model_with_what_they_have_decided(
    client: TestClient, view: SystemView, explained: DecisionTable
) -> None:
    for model in ("support", "sales", "billing"):
        put(view, model=model)
    explained.apply(Record(decided(START).encode(), key=b"support"))
    page = client.get("/policies", params={"limit": 2}).json()
    rest = client.get("/policies", params={"limit": 2, "cursor": page["next"]}).json()
    items = [*page["items"], *rest["items"]]
    assert [item["policy"]["model"] for item in items] == ["billing", "sales", "support"]
    assert [item["decision"] and item["decision"]["decision"] for item in items] == [None, None, "blocked"]
    assert rest["next"] is None


def test_a_policy_is_explained_with_its_figures_bounds_and_what_blocks_it(
    client: TestClient, explained: DecisionTable
) -> None:
    clock = FakeClock(START)
    for decision in ("waiting", "blocked", "requested"):
        change = decided(clock(), decision, since=clock())
        for key in (f"support/{clock().isoformat()}", "support"):
            explained.apply(Record(change.encode(), key=key.encode()))
        clock.advance(timedelta(minutes=1))
    newer = decided(clock(), "requested", since=clock() - timedelta(minutes=1), request_id="policy-1")
    explained.apply(Record(newer.encode(), key=b"support"))
    answer = client.get("/policies/support/explain", params={"limit": 2}).json()
    assert PolicyDecided.model_validate(answer["decision"], strict=False) == newer
    [rule] = answer["decision"]["rules"]
    [condition], [block] = rule["conditions"], rule["blocks"]
    assert (rule["rule"], condition["figure"], condition["bound"]) == ("default", 1200, 1000)
    assert (condition["since"], block["block"]) == ("2026-03-01T00:00:00Z", "cooldown")
    assert answer["decision"]["next_at"] == block["until"] == "2026-03-01T06:00:00Z"
    assert answer["decision"]["request_id"] == "policy-1"
    assert [change["decision"] for change in answer["changes"]] == ["requested", "blocked"]


def test_a_model_that_nobody_has_decided_on_is_not_one_without_a_policy(
    client: TestClient, view: SystemView, explained: DecisionTable
) -> None:
    assert explained.newest("support") is None
    assert client.get("/policies/support/explain").status_code == 404
    put(view)
    assert client.get("/policies/support/explain").json() == {"decision": None, "changes": []}


def test_decisions_are_not_told_before_they_are_read(client: TestClient, view: SystemView) -> None:
    put(view)
    assert client.get("/policies/support/explain").status_code == 503
    assert client.get("/policies").status_code == 503


def test_repeated_and_older_decisions_change_nothing_and_old_changes_are_let_go() -> None:
    table = DecisionTable()
    records = [
        Record(decided(START + timedelta(minutes=number)).encode(), key=f"support/{number}".encode())
        for number in range(MAX_CHANGES + 5)
    ]
    for record in (*records, *records[-3:], *records[:3]):
        table.apply(record)
    assert table.newest("support") == records[-1].value
    assert table.changes("support", MAX_CHANGES) == [record.value for record in reversed(records[5:])]


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\xff", b"{}", b"[" * 100_000])
def test_what_is_no_decision_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  msgspec's words
        DecisionTable().apply(Record(value, key=b"m"))
