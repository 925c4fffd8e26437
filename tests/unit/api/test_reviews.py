"""Approvals and rejections of versions."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.system import SystemView
from foldtune.events import ModelReviewed, State, now
from foldtune.settings import ApprovalSettings, Settings
from foldtune.topics import Topic
from tests.support import model_ready

from .conftest import MemoryPublisher, Record, client_of, status_record

WHERE = "/models/support/versions"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Versions of ``support`` need an approval."""
    return settings.model_copy(update={"approval": ApprovalSettings(models=("support",))})


@pytest.fixture(autouse=True)
def versions(view: SystemView) -> None:
    """Two promoted versions of ``support``, one that was not, and one of another model."""
    for model, version in (("support", "000001"), ("support", "000002"), ("sales", "000001")):
        view.models.apply(Record(model_ready(model=model, version=version).encode()))
    uri = "s3://bucket/models/0/000003/runs/run"
    view.apply_status(status_record(1, State.COMPLETED, model_uri=uri, promoted=False))


def review(view: SystemView, version: str, *, approved: bool, by: str = "ada") -> None:
    event = ModelReviewed(model="support", version=version, approved=approved, by=by, at=now())
    view.apply_review(Record(event.encode()))


def approvals(client: TestClient, model: str = "support") -> dict[str, Any]:
    return {item["version"]: item["approval"] for item in client.get(f"/models/{model}/versions").json()["items"]}


def test_versions_show_whether_they_may_be_deployed(client: TestClient, view: SystemView) -> None:
    review(view, "000001", approved=True)
    assert approvals(client) == {"000003": None, "000002": "waiting", "000001": "approved"}
    assert approvals(client, "sales") == {"000001": "not_required"}
    summary = client.get("/models/support").json()
    assert summary["deployable"] == "000001"
    assert (summary["waiting"], [item["approval"] for item in summary["recent"]]) == (1, ["waiting", "approved"])
    # Of a model that needs approvals since its own, of others since it was published.
    since = [client.get(f"/models/{model}").json()["deployable_since"] for model in ("support", "sales")]
    assert since[0] == client.get(f"{WHERE}/000001").json()["review"]["at"]
    assert since[1] == client.get("/models/sales/versions/000001").json()["published_at"]
    review(view, "000001", approved=False)
    assert client.get("/models/support").json()["deployable"] is None
    assert client.get("/models/sales").json()["deployable"] == "000001"
    details = client.get(f"{WHERE}/000001").json()
    assert (details["approval"], details["review"]["by"]) == ("rejected", "ada")


def test_an_approval_is_published_after_it_is_audited(client: TestClient, publisher: MemoryPublisher) -> None:
    answer = client.post(f"{WHERE}/000002/approve", json={"comment": "reads well"})
    assert answer.status_code == 200
    assert [(topic, key) for topic, _, key in publisher.events] == [
        (Topic.AUDIT, "support/000002"),
        (Topic.REVIEWS, "support/000002/approved"),
    ]
    [event] = publisher.on(Topic.REVIEWS)
    assert ModelReviewed.model_validate_json(answer.content) == event
    assert (event.approved, event.by, event.comment) == (True, "anybody", "reads well")
    [entry] = publisher.audited
    assert (entry.action, entry.target, entry.model) == ("version.approve", "support/000002", "support")
    assert (entry.before, entry.after) == ({"approval": "waiting"}, {"comment": "reads well"})
    assert approvals(client)["000002"] == "approved"


def test_the_same_review_again_is_the_first_one(client: TestClient, publisher: MemoryPublisher) -> None:
    first = client.post(f"{WHERE}/000002/reject", json={"comment": "no"})
    assert client.post(f"{WHERE}/000002/reject", json={}).json() == first.json()
    assert len(publisher.on(Topic.REVIEWS)) == 1


def test_a_rejection_is_final_and_an_approval_is_not(
    client: TestClient, publisher: MemoryPublisher, view: SystemView
) -> None:
    review(view, "000002", approved=True)
    assert client.post(f"{WHERE}/000002/reject", json={}).status_code == 200
    assert publisher.audited[0].before
    assert publisher.audited[0].before["approval"] == "approved"
    answer = client.post(f"{WHERE}/000002/approve", json={})
    assert answer.status_code == 409
    assert "which is final" in answer.json()["errors"][0]
    assert approvals(client)["000002"] == "rejected"


@pytest.mark.parametrize(
    ("version", "body", "code"),
    [
        ("000009", {}, 404),
        ("000003", {}, 409),
        ("000002", {"comment": "x" * 1001}, 400),
        ("000002", {"by": "somebody else"}, 400),
    ],
)
def test_a_review_of_what_nobody_deploys_or_with_other_fields_is_refused(
    client: TestClient, publisher: MemoryPublisher, version: str, body: dict[str, Any], code: int
) -> None:
    for verb in ("approve", "reject"):
        assert client.post(f"{WHERE}/{version}/{verb}", json=body).status_code == code
    assert not publisher.events


def test_a_review_needs_all_folders_of_the_model(services: Services, publisher: MemoryPublisher) -> None:
    assert client_of(services, "of-handbook").post(f"{WHERE}/000002/approve", json={}).status_code == 403
    of_support = client_of(services, "of-support")
    assert of_support.post("/models/sales/versions/000001/approve", json={}).status_code == 403
    assert not publisher.events
    assert of_support.post(f"{WHERE}/000002/approve", json={}).status_code == 200


def test_nothing_is_reviewed_that_cannot_be_audited(client: TestClient, publisher: MemoryPublisher) -> None:
    publisher.broken = True
    assert client.post(f"{WHERE}/000002/approve", json={}).status_code == 503
    assert approvals(client)["000002"] == "waiting"
