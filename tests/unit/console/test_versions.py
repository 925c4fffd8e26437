"""A version from its logs to its deployment, and two of them side by side."""

import io
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.system import SystemView
from console.pages.compare import shared_questions
from console.pages.versions import QuestionRow
from foldtune.events import FineTuneRequested, ModelReady, TopicOffset
from foldtune.knobs import DataSelection, DatasetKnobs
from foldtune.settings import Settings
from tests.published_version import ROWS, publish_version
from tests.unit.api.conftest import MemoryPublisher, Record

from .conftest import browser_of

MODEL = "/console/models/support"
AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def versions(services: Services, view: SystemView, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModelReady]:
    """Three promoted versions, each measured against the one before it, with their requests."""
    made: dict[str, ModelReady] = {}
    requests: dict[int, Record] = {}
    selections = {"000001": DataSelection(), "000002": DataSelection(folders=("pricing",)), "000003": DataSelection()}
    for number, (version, data) in enumerate(selections.items()):
        before = f"00000{number}" if number else None
        ready = publish_version(
            services.store, "support", version, compared_with=before, parent_version=before, cost_dollars=0.12
        )
        view.models.apply(Record(ready.encode()))
        asked = FineTuneRequested(
            request_id=ready.request_id,
            model="support",
            requested_at=AT,
            requested_by="ada",
            data=data,
            dataset=DatasetKnobs(hard_negatives=4 + number),
        )
        requests[number] = Record(asked.encode(), number)
        view._places.apply(requests[number])
        made[version] = ready

    async def read_record(_settings: Any, _topic: Any, _partition: int, offset: int) -> Record:
        return requests[offset]

    monkeypatch.setattr("api.routes.requests.read_record", read_record)
    return made


@pytest.fixture
def viewing(services: Services, settings: Settings) -> TestClient:
    return browser_of(services, settings, "viewer")


def test_a_version_leads_from_its_logs_to_its_deployment(
    viewing: TestClient, services: Services, view: SystemView, versions: dict[str, ModelReady]
) -> None:
    offsets = (TopicOffset(topic="chat-logs", partition=2, offset=4711),)
    ready = publish_version(services.store, "support", "000004", parent_version="000003", snapshot_offsets=offsets)
    view.models.apply(Record(ready.encode()))
    page = viewing.get(f"{MODEL}/versions/000002").text
    assert '<a href="/console/folders/pricing">pricing</a>' in page
    assert f'<button type="button" class="copy" data-text="{ready.snapshot_sha256}" data-done="Copied"' in page
    assert f'aria-label="Copy {versions["000002"].manifest_sha256}" hidden>Copy</button>' in page
    assert f'href="{MODEL}/versions/000002/files/1_Pooling%2Fconfig.json"' in page
    assert f'Deployments that take the newest take <a class="version" href="{MODEL}/versions/000004">' in page
    newest = viewing.get(f"{MODEL}/versions/000004").text
    assert "take this version, since" in newest
    assert '<td class="figure">4,711</td>' in newest
    # Back to the base model.
    chain = newest.split('id="ancestors"')[1]
    assert [chain.count(f'versions/00000{number}"') for number in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert "hf://org/model" in chain
    assert viewing.get(f"{MODEL}/versions/unknown").status_code == 404


@pytest.mark.usefixtures("versions")
def test_a_file_is_fetched_where_the_object_store_has_it(viewing: TestClient) -> None:
    answer = viewing.get(f"{MODEL}/versions/000001/files/1_Pooling/config.json", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"].endswith("/000001/runs/run/1_Pooling/config.json?seconds=300")
    for name in ("evaluation.parquet", "..%2F..%2Flatest.json", "none.json"):
        assert viewing.get(f"{MODEL}/versions/000001/files/{name}", follow_redirects=False).status_code == 404


@pytest.mark.usefixtures("versions")
def test_two_versions_stand_side_by_side_with_what_differs(viewing: TestClient) -> None:
    # In whatever order they are chosen.
    page = viewing.get(f"{MODEL}/compare?version=000002&version=000001").text
    names = f'<a class="version" href="{MODEL}/versions/000002">000002</a> was measured against <a class="version"'
    assert names in page
    assert "on the same 10 held-out questions: nDCG@10 .200 → .200 (+.100, 95 % interval +.050 to +.150)" in page
    differing = page.split("What differs")[2].split("</table>")[0]
    rows = [row.split("</th>")[0] for row in differing.split('<th scope="row">')[1:]]
    assert rows == ["Folders", "Hard negative samples", "Started from", "Measured against"]
    assert '<td data-name="Older">all</td><td data-name="Newer">pricing</td>' in differing
    assert '<td data-name="Older">4</td><td data-name="Newer">5</td>' in differing
    # Of the newer one alone, as it was measured against the older one.
    assert "Difference, same questions" in page
    assert '<td class="figure" data-name="Difference, same questions"><span class="worse">−.080</span></td>' in page  # noqa: RUF001
    assert "pricing</a>" in page.split('id="folders"')[1]
    assert "$0.12" in page
    # Its questions are for those who may read them.
    assert "compare/questions" not in page
    apart = viewing.get(f"{MODEL}/compare?version=000001&version=000003").text
    assert "a difference of scores may come from the questions" in apart
    assert "Difference, own questions" in apart


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize(
    ("query", "status", "error"),
    [
        ("", 400, "Choose two versions."),
        ("version=000001", 400, "Choose a second version, too."),
        ("version=000001&version=", 400, "Choose a second version, too."),
        ("version=000001&version=000001", 400, "this is the same one twice"),
        ("version=000001&version=000002&version=000003", 400, "Choose two versions, not 3."),
        ("version=000001&version=%3Cb%3E", 400, "version"),
        ("version=000001&version=000009", 404, "version &#39;000009&#39; of model &#39;support&#39; not found"),
    ],
)
def test_a_wrong_choice_is_said_beside_the_form_which_keeps_it(
    viewing: TestClient, query: str, status: int, error: str
) -> None:
    answer = viewing.get(f"{MODEL}/compare?{query}")
    assert answer.status_code == status
    assert error in answer.text.split('id="error"')[1].split("</p>")[0]
    assert ("<option selected>000001</option>" in answer.text) == ("000001" in query)
    assert "<b>" not in answer.text


def test_questions_of_both_are_shown_to_whom_may_read_them(
    services: Services, settings: Settings, publisher: MemoryPublisher, versions: dict[str, ModelReady]
) -> None:
    address = f"{MODEL}/compare/questions?version=000001&version=000002"
    assert browser_of(services, settings, "viewer").get(address).status_code == 403
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**ROWS[0], "rank_after": 1}, ROWS[1]]), table)
    services.store.put(f"{services.store.key(versions['000002'].model_uri)}/evaluation.parquet", table.getvalue())
    anybody = browser_of(services, settings, "anybody")
    assert f'hx-get="{address}"' in anybody.get(address.replace("/questions", "")).text.replace("&amp;", "&")
    part = anybody.get(address, headers={"hx-request": "true"}).text
    assert "<html" not in part
    assert "2 questions are held out of both: the right passage stands higher in 000002 for 1, and lower for 0." in part
    assert "question 0?" in part
    assert "question 1?" not in part
    assert "Rank of the first right passage: 2 and 1" in part
    assert {entry.target for entry in publisher.audited} == {"support/000001", "support/000002"}
    assert anybody.get(f"{MODEL}/compare/questions?version=000001").status_code == 400


def test_questions_are_sorted_by_how_much_they_differ() -> None:
    def row(question: str, rank: int | None) -> QuestionRow:
        return QuestionRow(question=question, gain=0.0, rank_after=rank, before=[], after=[])

    left = [row("a", 1), row("b", 3), row("c", None), row("d", 2), row("of left", 1)]
    right = [row("d", 2), row("c", 7), row("b", 1), row("a", None), row("of right", 1)]
    shared = shared_questions(left, right)
    assert [(each.right.question, round(each.gain, 3)) for each in shared] == [
        ("a", -1.0),
        ("b", 0.5),
        ("c", 0.333),
        ("d", 0.0),
    ]


def test_a_version_whose_request_and_files_are_gone_is_shown_without(
    viewing: TestClient, services: Services, versions: dict[str, ModelReady], monkeypatch: pytest.MonkeyPatch
) -> None:
    del versions
    monkeypatch.setattr(services.view, "_places", type(services.view._places)())
    monkeypatch.setattr(services.store, "get_start", lambda *_: (b"[", 1))
    page = viewing.get(f"{MODEL}/versions/000001")
    assert page.status_code == 200
    assert "not known any more" in page.text
    assert "Its files are not on the object store." in page.text
    both = viewing.get(f"{MODEL}/compare?version=000001&version=000002").text
    assert both.count("What was asked for is not known any more of") == 2
    assert "not known of either" in both
