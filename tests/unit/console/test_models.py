"""The pages of models: what is served, whether it gets better, and when it is trained next."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.system import SystemView
from console.pages.models import NextTraining, next_training
from foldtune.events import Condition, GateVerdict, ModelReviewed, PolicyDecided, RetrainingPolicy, RuleFigures, now
from foldtune.policy import Rule
from foldtune.settings import ApprovalSettings, Settings
from tests.published_version import publish_version
from tests.support import model_ready
from tests.unit.api.conftest import Record, status_record

from .conftest import browser_of

AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Versions of ``support`` need an approval."""
    return settings.model_copy(update={"approval": ApprovalSettings(models=("support",))})


@pytest.fixture
def viewing(services: Services, settings: Settings) -> TestClient:
    return browser_of(services, settings, "viewer")


def add(view: SystemView, model: str, version: str, gain: float, **fields: Any) -> None:
    after = model_ready().metrics_after.model_copy(update={"ndcg_at_10": 0.5 + gain})
    gate = GateVerdict(promote=True, reasons=(), ndcg_gain=gain, ndcg_gain_interval=(gain - 0.03, gain + 0.04))
    ready = model_ready(
        model=model, version=version, request_id=f"r-{version}", metrics_after=after, gate=gate, **fields
    )
    view.models.apply(Record(ready.encode()))


def review(view: SystemView, version: str, *, approved: bool) -> None:
    at = AT + timedelta(hours=3)
    event = ModelReviewed(model="support", version=version, approved=approved, by="ada", at=at)
    view.apply_review(Record(event.encode()))


@pytest.fixture
def versions(view: SystemView) -> None:
    """One that is served, one that was rejected, and one that waits."""
    for version, gain in (("000001", 0.05), ("000002", 0.02), ("000003", 0.1)):
        add(view, "support", version, gain, compared_with="000001" if version != "000001" else None)
    review(view, "000001", approved=True)
    review(view, "000002", approved=False)


def decided(*conditions: Condition, decision: str = "waiting", **fields: Any) -> dict[str, Any]:
    rules = (RuleFigures(rule="default", conditions=conditions),)
    event = PolicyDecided(model="support", at=AT, since=AT, decision=decision, rules=rules, **fields)
    return event.model_dump(mode="json")


@pytest.mark.usefixtures("versions")
def test_the_first_page_says_what_is_served_what_waits_and_how_it_has_become(
    viewing: TestClient, view: SystemView
) -> None:
    add(view, "sales", "000007", 0.01)
    view.apply_status(status_record(model="warehouse"))
    page = viewing.get("/console/").text
    assert 'href="/console/models/support/versions/000001"' in page
    assert "✓ approved" in page
    assert 'datetime="2026-03-01T03:00:00Z"' in page
    assert '<a class="state standing-waiting" href="/console/jobs/support/r-000003">◷ 1 waits' in page
    # Each as the figure after, and the interval of its gain above the figure before.
    figures = ".550 (.520 to .590); .520 (.490 to .560); .600 (.570 to .640)"
    assert f"of the last 3 promoted versions, each with the 95 % interval of its gain: {figures}" in page
    assert '<circle class="of-rejected"' in page
    assert '<span class="better">+.100</span>' in page
    assert "none promoted yet" in page
    # Only whoever may ask for a training is offered one.
    assert "/console/fine-tune?model=" not in page


@pytest.mark.usefixtures("versions")
def test_each_row_leads_to_a_training(services: Services, settings: Settings) -> None:
    page = browser_of(services, settings, "requester").get("/console/").text
    assert '<a class="button" href="/console/fine-tune?model=support" aria-label="Fine-tune support">' in page


@pytest.mark.usefixtures("versions")
def test_the_next_training_stands_in_words_and_not_where_it_is_not_known(
    viewing: TestClient, view: SystemView, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no policy" not in viewing.get("/console/").text
    monkeypatch.setattr(view, "_decided", SimpleNamespace(age_seconds=0.0))
    assert "none: no policy" in viewing.get("/console/").text
    policy = RetrainingPolicy(model="support", at=now(), rules=(Rule(new_examples=100),))
    view.apply_policy(Record(policy.encode(), key=b"support"))
    assert "not decided yet" in viewing.get("/console/").text
    event = decided(Condition(condition="new_examples", met=False, figure=63, bound=100))
    view.decisions.apply(Record(json.dumps(event).encode(), key=b"support"))
    for page in ("/console/", "/console/models/support"):
        text = viewing.get(page).text
        assert "37 more labelled examples" in text
        assert 'href="/console/policies/support"' in text


def test_what_the_next_training_waits_for() -> None:
    rules = {"rules": [{"name": "default"}]}
    conditions = (
        Condition(condition="new_examples", met=False, figure=90, bound=100),
        Condition(condition="changed_documents", met=False, figure=0.07, bound=0.2),
        Condition(condition="calendar", met=False),
        Condition(condition="quality", met=False, bound=0.01),
        Condition(condition="of_tomorrow", met=False),
        Condition(condition="new_examples", met=False, figure=-1e308, bound=1e308),
    )
    waiting = decided(*conditions, next_at=AT)
    expected = NextTraining("waiting", examples=10, changed=(0.07, 0.2), at=AT, on_quality=True)
    assert next_training({"policy": rules, "decision": waiting}) == expected
    assert next_training({"policy": {"rules": []}, "decision": waiting}) == NextTraining("off")
    unread: Any
    for unread in (None, {}, {"decision": "waiting"}, []):
        assert next_training({"policy": rules, "decision": unread}) is None


@pytest.mark.usefixtures("versions")
def test_a_model_shows_its_versions_over_time_and_what_is_deployed(services: Services, settings: Settings) -> None:
    page = browser_of(services, settings, "viewer").get("/console/models/support").text
    assert "Better: nDCG@10 .200 → .600 (+.100, 95 % interval +.070 to +.140)" in page
    assert page.count('data-kind="intervals"') == 2
    assert (
        '<th scope="row">000003</th><td class="figure">0.6000</td><td class="figure">0.5700</td>'
        '<td class="figure">0.6400</td><td class="figure">0.5000</td>'
    ) in page
    assert "✗ rejected" in page
    assert '<input type="checkbox" name="version" value="000002"' in page
    assert "Its verdict" in page
    approver = browser_of(services, settings, "approver").get("/console/models/support").text
    assert '<a href="/console/jobs/support/r-000003">Approve or reject</a>' in approver


def test_folders_are_shown_over_the_last_versions(viewing: TestClient, services: Services, view: SystemView) -> None:
    for version, file in (("000001", {}), ("000002", {"x/<b>": 0.7}), ("000003", {"x/<b>": 0.8, "new": 0.5})):
        ready = publish_version(services.store, "support", version)
        view.models.apply(Record(ready.encode()))
        folders = {
            name: {
                "questions": 9,
                "before": {"ndcg_at_10": 0.6},
                "after": {"ndcg_at_10": score},
                "ndcg_gain_interval": [score - 0.65, score - 0.55],
            }
            for name, score in file.items()
        }
        content = json.dumps({"folders": folders}).encode() if version != "000001" else b"["
        services.store.put(f"{services.store.key(ready.model_uri)}/metrics.json", content)
    address = "/console/models/support/folders"
    page, part = viewing.get(address).text, viewing.get(address, headers={"hx-request": "true"}).text
    assert "<html" in page
    assert "<html" not in part
    rows = [row.split("<td") for row in part.split("<tr>")[2:]]
    assert ["/console/folders/" in row[0] for row in rows] == [True, True]
    assert "x/&lt;b&gt;" in rows[1][0]
    assert [cell.split(">")[1].split("<")[0] for cell in rows[1][3:6]] == ["–", ".700", ".800"]  # noqa: RUF001
    assert '<span class="better">+.200</span> <span class="quiet">+.150 to +.250</span>' in rows[1][6]
    assert "of the last 2 promoted versions, each with the 95 % interval of its gain: .700 (.650 to .750); .800" in part
    assert 'href="/console/models/support/folders"' in viewing.get("/console/models/support").text
