"""``/models``: versions, their files, and what they were made from."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.cursors import encode_cursor
from api.view.system import SystemView
from foldtune.events import ModelReady, RetrainingPolicy, State, now
from foldtune.object_keys import manifest_key, model_prefix
from foldtune.policy import Calendar, Rule
from tests.published_version import METRICS, publish_version

from .conftest import MemoryPublisher, Record, bearer, client_of, status_record


@pytest.fixture
def versions(services: Services, view: SystemView) -> dict[str, ModelReady]:
    """Three versions of ``support``: the second was not promoted, the third started from the first."""
    store = services.store
    first = publish_version(store, "support", "000001")
    second = publish_version(store, "support", "000002")
    third = publish_version(store, "support", "000003", parent_version="000001", compared_with="000001")
    for ready in (first, third, first):
        view.models.apply(Record(ready.encode()))
    for number, ready in enumerate((first, second)):
        record = status_record(
            number, State.COMPLETED, request_id=ready.request_id, model_uri=ready.model_uri, promoted=number == 0
        )
        view.apply_status(record)
    return {"000001": first, "000002": second, "000003": third}


@pytest.mark.usefixtures("versions")
def test_a_model_shows_its_newest_promoted_versions(client: TestClient) -> None:
    [item] = client.get("/models").json()["items"]
    assert (item["model"], item["versions"]) == ("support", 3)
    assert [(one["version"], one["compared_with"]) for one in item["recent"]] == [
        ("000003", "000001"),
        ("000001", None),
    ]
    assert (item["recent"][0]["ndcg_at_10_before"], item["recent"][0]["questions"]) == (0.2, 10)
    assert (item["deployable"], item["waiting"]) == ("000003", 0)
    assert client.get("/models/support").json() == item
    assert client.get("/models/sales").status_code == 404


def test_a_model_with_a_request_or_a_policy_is_listed_before_its_first_version(
    client: TestClient, view: SystemView
) -> None:
    view.apply_status(status_record(model="asked"))
    policy = RetrainingPolicy(model="planned", at=now(), rules=(Rule(calendar=Calendar()),))
    view.apply_policy(Record(policy.encode(), key=b"planned"))
    items = client.get("/models").json()["items"]
    assert [(item["model"], item["versions"]) for item in items] == [("asked", 0), ("planned", 0)]
    for item in items:
        assert client.get(f"/models/{item['model']}").json() == item
        assert client.get(f"/models/{item['model']}/versions").json() == {"items": [], "next": None}
    assert client.get("/models/unheard-of/versions").status_code == 404


@pytest.mark.usefixtures("versions")
def test_versions_are_listed_by_pages_with_those_that_were_not_promoted(client: TestClient) -> None:
    page = client.get("/models/support/versions", params={"limit": 2}).json()
    rest = client.get("/models/support/versions", params={"limit": 2, "cursor": page["next"]}).json()
    items = [*page["items"], *rest["items"]]
    assert [(item["version"], item["promoted"]) for item in items] == [
        ("000003", True),
        ("000002", False),
        ("000001", True),
    ]
    assert rest["next"] is None


def test_a_version_is_told_as_its_event_does(client: TestClient, versions: dict[str, ModelReady]) -> None:
    for version, ready in versions.items():
        answer = client.get(f"/models/support/versions/{version}")
        assert ModelReady.model_validate_json(answer.content) == ready


def rewrite_manifest(services: Services, **ready: str) -> None:
    """Change what the manifest of version 000001 says of itself."""
    key = manifest_key(model_prefix("support", "000001"))
    manifest = json.loads(services.store.get(key))
    manifest["ready"] |= ready
    services.store.put(key, json.dumps(manifest).encode())


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize("place", ["models/secret/000001/runs/run", "models/support/000002/runs/run", "snapshots/r"])
def test_a_manifest_leads_to_no_files_but_its_own(place: str, client: TestClient, services: Services) -> None:
    rewrite_manifest(services, model_uri=services.store.uri(place))
    for path in ("/card", "/metrics", "/files", "/files/README.md"):
        answer = client.get(f"/models/support/versions/000001{path}")
        assert (answer.status_code, "manifest" in answer.json()["detail"]) == (409, True)


@pytest.mark.usefixtures("versions")
def test_a_file_that_is_too_large_is_not_read(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.artifacts._MAX_BYTES", 5)
    answer = client.get("/models/support/versions/000001/card")
    assert answer.status_code == 409
    assert "at most 5" in answer.json()["detail"]


@pytest.mark.usefixtures("versions")
def test_card_metrics_and_files(client: TestClient) -> None:
    where = "/models/support/versions/000002"
    card = client.get(f"{where}/card")
    assert (card.content, card.headers["content-type"]) == (b"# Card", "text/markdown; charset=utf-8")
    assert client.get(f"{where}/metrics").json() == METRICS
    assert "1_Pooling/config.json" in {file["path"] for file in client.get(f"{where}/files").json()["items"]}
    link = client.get(f"{where}/files/1_Pooling/config.json").json()
    assert link["url"].endswith("/000002/runs/run/1_Pooling/config.json?seconds=300")


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize(
    "path",
    [
        "000009/card",
        "000001/files/evaluation.parquet",
        "000001/files/../../latest.json",
        "000001/files/none.json",
        "..%2F000001/card",
    ],
)
def test_what_is_not_of_the_version_is_not_found(client: TestClient, path: str) -> None:
    assert client.get(f"/models/support/versions/{path}").status_code == 404


@pytest.mark.usefixtures("versions")
def test_lineage_leads_back_to_the_base_model(client: TestClient) -> None:
    items = client.get("/models/support/versions/000003/lineage").json()["items"]
    assert [(item["version"], item["parent_version"]) for item in items] == [("000003", "000001"), ("000001", None)]
    assert items[-1]["base_model"]["uri"] == "hf://org/model"


@pytest.mark.usefixtures("versions")
def test_each_read_of_held_out_questions_is_audited(client: TestClient, publisher: MemoryPublisher) -> None:
    where = "/models/support/versions/000001/evaluation"
    page = client.get(where, params={"limit": 2}, headers=bearer("privacy")).json()
    assert [row["gain"] for row in page["items"]] == [-0.25, 0.0]
    rest = client.get(where, params={"limit": 2, "cursor": page["next"]}).json()
    assert [row["question"] for row in rest["items"]] == ["question 0?"]
    assert (rest["next"], rest["total"]) == (None, 3)
    gained = client.get(where, params={"order": "gained", "limit": 1}, headers=bearer("privacy")).json()
    assert [row["gain"] for row in gained["items"]] == [0.5]
    assert client.get(where, params={"order": "any"}).status_code == 400
    assert [(entry.who, entry.action, entry.target) for entry in publisher.audited] == [
        ("privacy", "evaluation.read", "support/000001"),
        ("anybody", "evaluation.read", "support/000001"),
        ("privacy", "evaluation.read", "support/000001"),
    ]
    publisher.broken = True
    assert client.get(where).status_code == 503


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize("row", [3, 2**31, 10**30])
def test_behind_the_last_row_there_is_none(row: int, client: TestClient) -> None:
    query = {"cursor": encode_cursor((row,))}
    answer = client.get("/models/support/versions/000001/evaluation", params=query)
    assert (answer.status_code, answer.json()["items"], answer.json()["next"]) == (200, [], None)


def _bytes_of_no_text() -> bytes:
    table = io.BytesIO()
    pq.write_table(pa.table({"gain": [0.5], "question": [b"\xff"]}), table)
    return table.getvalue()


@pytest.mark.parametrize("content", [b"PAR1", b"", b"{}", _bytes_of_no_text()])
def test_rows_that_cannot_be_read_are_a_conflict(
    content: bytes, client: TestClient, services: Services, versions: dict[str, ModelReady]
) -> None:
    key = services.store.key(versions["000001"].model_uri)
    services.store.put(f"{key}/evaluation.parquet", content)
    assert client.get("/models/support/versions/000001/evaluation").status_code == 409


@pytest.mark.usefixtures("versions")
def test_a_grant_for_folders_reads_no_questions_of_others(services: Services) -> None:
    client = client_of(services, "of-handbook")
    assert client.get("/models/support/versions/000001/evaluation").status_code == 403
    assert client.get("/models/support/versions/000001").status_code == 200
    assert client_of(services, "of-support").get("/models").json()["items"]
