"""What pages show, to whom, and of whatever is in them."""

import asyncio
import html
import io
import json
import re
from datetime import UTC, datetime, timedelta

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.system import SystemView
from console import assets
from console.api_client import path
from console.rendering import change, duration, signed, time_element
from foldtune.events import FineTuneRequested, ModelReady, Progress, State, StateTime
from foldtune.knobs import TrainingKnobs
from foldtune.object_keys import attempt_key
from foldtune.settings import Settings
from foldtune.topics import Topic
from tests.published_version import publish_version
from tests.unit.api.conftest import MemoryPublisher, Record, status_record

from .conftest import browser_of

BEGUN = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAY = tuple(
    StateTime(state=state, at=BEGUN + timedelta(seconds=90 * number))
    for number, state in enumerate(("accepted", "queued", "running"))
)


@pytest.fixture
def running(view: SystemView) -> None:
    progress = Progress(step=10, steps=117, loss=1.2, examples_per_second=20, eta_seconds=200)
    curve = ((1, 2.0), (10, 1.2))
    view.apply_status(status_record(1, State.RUNNING, states=WAY, progress=progress, loss_curve=curve))


@pytest.fixture
def viewing(services: Services, settings: Settings) -> TestClient:
    return browser_of(services, settings, "viewer")


@pytest.mark.usefixtures("running")
def test_a_running_job_shows_its_way_and_its_curve(viewing: TestClient) -> None:
    page = viewing.get("/console/jobs/support/r-1").text
    assert 'data-events="/console/jobs/support/r-1/events"' in page
    assert "waiting for a launcher" in page
    assert "1 min 30 s" in page
    assert re.search(r"\d (d|h|min|s) so far", page)
    assert 'hx-trigger="every 5s"' in viewing.get("/console/jobs").text
    assert "<td>10</td><td>1.2</td>" in page
    part = viewing.get("/console/jobs/support/r-1/progress").text
    assert part.strip() in page
    assert "<html" not in part


@pytest.mark.usefixtures("running")
def test_what_one_may_not_do_is_not_shown_and_refused_all_the_same(
    services: Services, settings: Settings, publisher: MemoryPublisher
) -> None:
    page, cancel = "/console/jobs/support/r-1", "/console/jobs/support/r-1/cancel"
    viewer = browser_of(services, settings, "viewer")
    assert "Cancel this job" not in viewer.get(page).text
    assert viewer.post(cancel).status_code == 403
    assert publisher.events == []
    requester = browser_of(services, settings, "requester")
    assert "Cancel this job" in requester.get(page).text
    assert requester.post(cancel, follow_redirects=False).headers["location"] == page
    assert [entry.action for entry in publisher.audited] == ["request.cancel"]
    stranger = browser_of(services, settings, "privacy")
    assert stranger.get(page).status_code == 403
    assert "/console/jobs" not in stranger.get("/console/nothing").text


def test_a_version_shows_its_verdict_and_what_it_was_measured_against(
    viewing: TestClient, services: Services, view: SystemView
) -> None:
    ready = publish_version(services.store, "support", "000001", compared_with="000000")
    view.models.apply(Record(ready.encode()))
    view.apply_status(
        status_record(1, State.COMPLETED, request_id=ready.request_id, model_uri=ready.model_uri, promoted=True)
    )
    assert "000001" in viewing.get("/console/").text
    assert "Promoted" in viewing.get("/console/models/support").text
    page = viewing.get(f"/console/jobs/support/{ready.request_id}").text
    assert "Better: nDCG@10" in page
    assert "pricing" in page
    assert '<span class="worse">−.080</span>' in page  # noqa: RUF001  a minus
    assert "000000" in page
    assert "data-events" not in page


@pytest.fixture
def completed(services: Services, view: SystemView) -> ModelReady:
    ready = publish_version(services.store, "support", "000001")
    view.models.apply(Record(ready.encode()))
    record = status_record(1, State.COMPLETED, request_id=ready.request_id, model_uri=ready.model_uri, promoted=True)
    view.apply_status(record)
    return ready


def test_questions_that_got_worse_or_better_are_shown_to_whom_may_read_them(
    services: Services, settings: Settings, publisher: MemoryPublisher, completed: ModelReady
) -> None:
    page, questions = (
        f"/console/jobs/support/{completed.request_id}",
        "/console/models/support/versions/000001/questions",
    )
    viewer, anybody = browser_of(services, settings, "viewer"), browser_of(services, settings, "anybody")
    assert "Held-out questions" not in viewer.get(page).text
    assert viewer.get(questions).status_code == 403
    assert f"{questions}?order=lost" in anybody.get(page).text
    lost, gained = (anybody.get(f"{questions}?order={order}").text for order in ("lost", "gained"))
    assert "question 1?" in lost
    assert "question 0?" not in lost
    assert "question 0?" in gained
    assert {entry.action for entry in publisher.audited} == {"evaluation.read"}


def test_an_approver_rejects_a_version_and_others_are_not_asked(
    services: Services, settings: Settings, publisher: MemoryPublisher, completed: ModelReady
) -> None:
    page, reject = f"/console/jobs/support/{completed.request_id}", "/console/models/support/versions/000001/reject"
    fields = {"request_id": completed.request_id, "comment": "Pricing is worse", "confirmed": "000001"}
    requester = browser_of(services, settings, "requester")
    assert reject not in requester.get(page).text
    assert requester.post(reject, data=fields).status_code == 403
    approver = browser_of(services, settings, "approver")
    assert reject in approver.get(page).text
    # It needs no approval.
    assert "/approve" not in approver.get(page).text
    assert "Deployments that take the newest take this version" in approver.get(reject).text
    for typed in ("", "000002"):
        again = approver.post(reject, data={**fields, "confirmed": typed})
        assert again.status_code == 400
        assert "not the version's name" in html.unescape(again.text)
        # What was typed is kept.
        assert "Pricing is worse" in again.text
    assert not publisher.on(Topic.REVIEWS)
    assert approver.post(reject, data=fields, follow_redirects=False).headers["location"] == page
    [review] = publisher.on(Topic.REVIEWS)
    without = approver.post(reject, data={"confirmed": "000001"}, follow_redirects=False)
    assert without.headers["location"] == "/console/models/support"
    assert (review.approved, review.by, review.comment) == (False, "approver", "Pricing is worse")


def test_a_reason_is_text_whatever_is_in_it(viewing: TestClient, view: SystemView) -> None:
    view.apply_status(status_record(1, State.FAILED, reasons=("<script>alert(1)</script>",)))
    for page in ("/console/jobs", "/console/jobs/support/r-1"):
        text = viewing.get(page).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;" in text


def test_pages_take_scripts_and_styles_of_this_host_alone_and_no_inline_ones(viewing: TestClient) -> None:
    answer = viewing.get("/console/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    for name in assets.FILES:
        file = viewing.get(assets.address(name))
        assert file.status_code == 200
        assert "immutable" in file.headers["cache-control"]
    assert viewing.get("/console/assets/0/console.css").headers["cache-control"] == "no-store"
    assert viewing.get("/console/assets/0/words.toml").status_code == 404


@pytest.mark.parametrize("part", ['"reasons":5', '"reasons":[],"progress":{}'])
def test_a_status_of_another_form_hides_no_others(viewing: TestClient, view: SystemView, part: str) -> None:
    odd = status_record(1, State.RUNNING, request_id="odd").value.replace(b'"reasons":[]', part.encode())
    view.apply_status(Record(odd, 1))
    view.apply_status(status_record(2, State.RUNNING, request_id="other"))
    for page in ("/console/jobs", "/console/models/support"):
        listed = viewing.get(page).text
        assert ">odd</a>" in listed
        assert ">other</a>" in listed
    shown = viewing.get("/console/jobs/support/odd")
    assert shown.status_code == 200
    assert "Its status is not as this release expects it." in shown.text


def test_a_word_that_is_none_of_ours_is_shown_as_it_is(viewing: TestClient, view: SystemView) -> None:
    way = (StateTime(state="items", at=BEGUN),)
    view.apply_status(status_record(1, State.RUNNING, states=way))
    page = viewing.get("/console/jobs/support/r-1").text
    assert "<td>items</td>" in page
    assert "built-in" not in page


@pytest.mark.parametrize(
    "prefix", ["s3://acme-models", "s3://models", "s3://memory/models/of/all", "s3://memory/a-models/b"]
)
def test_a_version_is_found_whatever_bucket_and_prefix_are_called(
    viewing: TestClient, view: SystemView, completed: ModelReady, prefix: str
) -> None:
    uri = completed.model_uri.replace("s3://memory", prefix)
    view.apply_status(status_record(5, State.COMPLETED, model_uri=uri, promoted=True))
    assert "Better: nDCG@10" in viewing.get("/console/jobs/support/r-1").text


def test_a_version_of_very_many_folders_and_files_shows_some(
    viewing: TestClient, services: Services, completed: ModelReady
) -> None:
    scores = {"questions": 1, "before": {"ndcg_at_10": 0.5}, "after": {"ndcg_at_10": 0.4}}
    content = json.dumps({"folders": {f"folder-{number}": scores for number in range(300)}}).encode()
    services.store.put(f"{services.store.key(completed.model_uri)}/metrics.json", content)
    page = viewing.get(f"/console/jobs/support/{completed.request_id}").text
    assert page.count('<a href="/console/folders/folder-') == 200
    assert "100 folders with fewer questions are not listed." in page


def test_jobs_are_found_by_model_and_state(viewing: TestClient, view: SystemView) -> None:
    view.apply_status(status_record(1, State.FAILED, request_id="one"))
    view.apply_status(status_record(2, State.COMPLETED, request_id="two", promoted=False))
    both = viewing.get("/console/jobs?model=&state=").text
    assert "one" in both
    assert "two" in both
    assert "hx-trigger" not in both
    failed = viewing.get("/console/jobs?state=failed").text
    assert "/support/one" in failed
    assert "/support/two" not in failed
    assert "No job matches" in viewing.get("/console/jobs?model=sales").text
    odd = viewing.get("/console/jobs?model=No+Name&state=failed")
    assert odd.status_code == 400
    assert 'value="No Name"' in odd.text
    assert "lower-case letters" in odd.text


def test_numbers_are_written_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0, 0.4, 61, 3600, 90_061, None)] == [
        "0 s",
        "0 s",
        "1 min 1 s",
        "1 h",
        "1 d 1 h",
        "–",  # noqa: RUF001  a dash
    ]
    assert signed(0.0004) == ".000"
    assert change(0.05) == '<span class="better">+.050</span>'
    assert 'class="worse"' in change(-0.05)
    assert 'datetime="2026-03-01T12:00:00Z"' in time_element(BEGUN)
    # No UTC has that moment.
    assert time_element("0001-01-01T00:00:00+14:00") == "0001-01-01T00:00:00+14:00"


@pytest.mark.parametrize("value", [b"\xff", b'"\\377"', b'"\\012"', b"a.b.c", b"x" * 20_000])
def test_a_cookie_of_whatever_text_is_no_session(browser: TestClient, value: bytes) -> None:
    answer = browser.get("/console/jobs", headers=[(b"cookie", b"foldtune-session=" + value)], follow_redirects=False)
    assert answer.status_code == 303


def test_a_form_or_query_of_too_many_fields_is_refused(services: Services, settings: Settings) -> None:
    browser, many = browser_of(services, settings, "anybody"), "a&" * 20_001
    for page in ("/console/sign-in", "/console/fine-tune", "/console/privacy", "/console/dead-letters/replay"):
        answer = browser.post(page, content=many)
        assert answer.status_code == 400, page
        assert "at most 20,000 fields" in answer.text
    assert browser.get(f"/console/fine-tune?{many}").status_code == 400


def test_the_stream_of_a_job_is_the_api_s_own_answer(services: Services, settings: Settings, view: SystemView) -> None:
    viewing = browser_of(services, settings, "viewer")
    view.apply_status(status_record(1, State.FAILED, reasons=("out of memory",)))
    seen = viewing.get("/console/jobs/support/r-1/events", headers={"authorization": "Bearer nobody"})
    assert seen.headers["content-type"].startswith("text/event-stream")
    assert "out of memory" in seen.text
    assert viewing.get("/console/jobs/support/unknown/events").status_code == 404
    viewing.cookies.clear()
    signed_out = viewing.get("/console/jobs/support/r-1/events", headers={"authorization": "Bearer viewer"})
    assert signed_out.status_code == 401


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff",
        b"no json",
        b"null",
        b"[]",
        b'{"folders": ["pricing"]}',
        b'{"folders": {"pricing": null}}',
        b'{"folders": {"pricing": {"questions": "many", "before": {}, "after": {}}}}',
        b'{"folders": {"pricing": {"questions": 1, "before": {"ndcg_at_10": NaN}, "after": {"ndcg_at_10": "<b>"}}}}',
    ],
)
def test_a_version_is_shown_without_scores_of_folders_that_are_none(
    viewing: TestClient, services: Services, completed: ModelReady, content: bytes
) -> None:
    services.store.put(f"{services.store.key(completed.model_uri)}/metrics.json", content)
    page = viewing.get(f"/console/jobs/support/{completed.request_id}")
    assert page.status_code == 200
    assert "Better: nDCG@10" in page.text
    assert "pricing" not in page.text


def test_rows_of_questions_that_are_none_are_said_to_be_so(
    services: Services, settings: Settings, completed: ModelReady
) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"gain": [None, -0.5], "question": ["<b>", None]}), table)
    services.store.put(f"{services.store.key(completed.model_uri)}/evaluation.parquet", table.getvalue())
    anybody = browser_of(services, settings, "anybody")
    answer = anybody.get("/console/models/support/versions/000001/questions", headers={"hx-request": "true"})
    assert answer.status_code == 409
    assert "rows are not as expected" in answer.text
    # It goes where the rows would.
    assert "<html" not in answer.text


def test_a_part_leads_to_the_sign_in_and_from_there_back_to_its_page(browser: TestClient) -> None:
    page = "http://localhost/console/jobs/support/r-1?x=1"
    for current, back in ((page, "/console/jobs/support/r-1%3Fx%3D1"), ("http://[", "/"), ("", "/")):
        headers = {"hx-request": "true", "hx-current-url": current}
        answer = browser.get("/console/jobs/support/r-1/progress", headers=headers)
        assert answer.status_code == 204
        assert answer.headers["hx-redirect"] == f"/console/sign-in?to={back}"


def test_every_answer_says_how_it_may_be_kept_and_a_wrong_method_which_are_right(viewing: TestClient) -> None:
    for page in ("/", "/console", "/console/", "/console/nothing", "/console/jobs?state=unknown"):
        answer = viewing.get(page, follow_redirects=False)
        assert answer.headers["cache-control"] == "no-store", page
        assert answer.headers["x-content-type-options"] == "nosniff", page
    head, whole = viewing.head("/console/jobs"), viewing.get("/console/jobs")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    stream = viewing.head("/console/jobs/support/r-1/events")
    assert (stream.status_code, stream.headers["allow"]) == (405, "GET")


def test_a_folder_may_have_the_name_of_a_step_in_a_path() -> None:
    base = httpx.URL("http://localhost")
    assert [base.join(path("folders", name)).path for name in ("..", ".", "a/..", "a.b")] == [
        "/folders/..",
        "/folders/.",
        "/folders/a/..",
        "/folders/a.b",
    ]


def test_an_address_that_is_too_long_when_it_is_quoted_is_refused(services: Services, settings: Settings) -> None:
    anybody, long = browser_of(services, settings, "anybody"), "'" * 30_000
    for page in ("folders?search=", "folders/", "audit?who=", "jobs?model=", "jobs/support/", "privacy/"):
        assert anybody.get(f"/console/{page}{long}").status_code in {400, 414}, page
    assert anybody.get(f"/console/jobs/support/{long}/events").status_code == 400


@pytest.mark.usefixtures("running")
def test_a_page_says_that_the_api_takes_too_long(viewing: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> None:
        await asyncio.sleep(10)

    monkeypatch.setattr("api.session_sign_in.SessionSignIn.caller", silent)
    monkeypatch.setattr("console.api_client._LIMIT_SECONDS", 0.05)
    for headers in ({}, {"hx-request": "true"}):
        answer = viewing.get("/console/jobs/support/r-1/progress", headers=headers)
        assert answer.status_code == 503
        assert "Service Unavailable" in answer.text
        assert ("<html" in answer.text) == (not headers)


def test_a_job_s_log_is_shown_to_whom_may_read_it(services: Services, settings: Settings, view: SystemView) -> None:
    view.apply_status(status_record(1, State.RUNNING, states=WAY))
    services.store.put(
        attempt_key("support", "r-1", 1, "log"),
        b'<b>no line of ours</b>\n{"timestamp":"2026-03-01T00:00:00Z","level":"info","event":"half \\ud800"}',
    )
    viewer, operator = (browser_of(services, settings, name) for name in ("viewer", "operator"))
    job, log = "/console/jobs/support/r-1", "/console/jobs/support/r-1/log"
    assert log not in viewer.get(job).text
    assert viewer.get(log).status_code == 403
    assert log in operator.get(job).text
    page, part = operator.get(log).text, operator.get(log, headers={"hx-request": "true"}).text
    assert "&lt;b&gt;no line of ours" in page
    assert "half ?" in page
    assert "&lt;b&gt;no line of ours" in part
    assert ("<html" in page, "<html" in part) == (True, False)


def test_a_job_that_no_worker_has_taken_yet_is_awaited(viewing: TestClient, view: SystemView) -> None:
    job = "/console/jobs/support/r-1"
    assert viewing.get(job).status_code == 404
    awaited = viewing.get(f"{job}?new=1")
    assert awaited.status_code == 202
    assert f'hx-get="{job}/awaited"' in awaited.text
    assert "hx-redirect" not in viewing.get(f"{job}/awaited").headers
    view.apply_status(status_record(1, State.ACCEPTED))
    assert viewing.get(f"{job}/awaited").headers["hx-redirect"] == job
    assert viewing.get(f"{job}?new=1").status_code == 200


@pytest.mark.parametrize(
    ("state", "told"),
    [(State.FAILED, "Failed: out of memory"), (State.REJECTED, "Rejected, so"), (State.CANCELLED, "Cancelled")],
)
def test_a_job_without_a_version_says_first_how_it_ended(
    viewing: TestClient, view: SystemView, state: State, told: str
) -> None:
    view.apply_status(status_record(1, state, reasons=("out of memory", "and again")))
    page = viewing.get("/console/jobs/support/r-1").text
    assert f'<p class="verdict">{told}' in page
    assert "<li>and again</li>" in page


def test_a_job_that_came_to_nothing_is_tried_again(
    services: Services,
    settings: Settings,
    view: SystemView,
    publisher: MemoryPublisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = FineTuneRequested(
        request_id="r-1", model="support", requested_at=BEGUN, requested_by="ann", training=TrainingKnobs(epochs=5)
    )

    async def original(*_: object) -> FineTuneRequested:
        return asked

    monkeypatch.setattr("api.routes.requests._original", original)
    view.apply_status(status_record(1, State.FAILED, reasons=("out of memory",)))
    requester, job = browser_of(services, settings, "requester"), "/console/jobs/support/r-1"
    page = requester.get(job).text
    assert "Epochs <strong>5</strong>" in html.unescape(page)
    assert f'action="{job}/retry"' in page
    assert "/retry" not in browser_of(services, settings, "viewer").get(job).text
    monkeypatch.setattr("api.routes.requests._require_same", lambda *_, **__: asyncio.sleep(0))
    again = requester.post(f"{job}/retry", follow_redirects=False)
    [made] = publisher.on(Topic.FINE_TUNE_REQUESTS)
    assert again.headers["location"] == f"/console/jobs/support/{made.request_id}?new=1"
    assert made.training.epochs == 5


def test_a_job_has_its_files_and_what_it_was_made_of(
    viewing: TestClient, services: Services, completed: ModelReady, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = f"/console/jobs/support/{completed.request_id}"
    page = viewing.get(job).text
    # Of a page that was open when it ended, too.
    assert "foldtune 0.2.0" in viewing.get(f"{job}/progress").text
    file = "/console/models/support/versions/000001/files/1_Pooling%2Fconfig.json"
    assert file in page
    assert "hf://org/model" in page
    assert "foldtune 0.2.0" in page
    assert "(71 %)" in page
    monkeypatch.setattr(type(services.store), "link", lambda _, key, __: f"https://store/{key}")
    answer = viewing.get(file, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"].endswith("/1_Pooling/config.json")
    assert viewing.get("/console/models/support/versions/000001/files/evaluation.parquet").status_code == 404
