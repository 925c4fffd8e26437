"""Folders, policies, dead letters, erasures and the audit: what their pages show, and to whom."""

import html
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.dead_letters import DeadLetterTable
from api.view.folders import FolderTable
from api.view.policies import DecisionTable
from api.view.system import SystemView
from console.pages.audit import told
from foldtune.settings import Role, Settings
from foldtune.topics import Topic
from tests.unit.api.conftest import MemoryPublisher, Record
from tests.unit.api.test_dead_letters import SECRET, letters
from tests.unit.api.test_folders import fill, folders, refreshed, stats
from tests.unit.api.test_policies import START, decided, explained, put

from .conftest import browser_of

__all__ = ["explained", "folders", "letters"]
# Of each page the roles that see it.
READERS = {Role.VIEWER, Role.REQUESTER, Role.APPROVER, Role.OPERATOR}
PAGES: dict[str, set[Role]] = {
    "/console/": READERS,
    "/console/fine-tune": {Role.REQUESTER},
    "/console/jobs": READERS,
    "/console/folders": READERS,
    "/console/policies": READERS,
    "/console/dead-letters": {Role.OPERATOR},
    "/console/privacy": {Role.PRIVACY},
    "/console/audit": {Role.OPERATOR, Role.PRIVACY},
}


@pytest.fixture
def anybody(services: Services, settings: Settings) -> TestClient:
    return browser_of(services, settings, "anybody")


@pytest.mark.usefixtures("folders", "letters", "explained")
@pytest.mark.parametrize("role", list(Role))
def test_the_menu_has_the_pages_that_a_role_sees(role: Role, services: Services, settings: Settings) -> None:
    browser = browser_of(services, settings, role.value)
    menu = browser.get("/console/nothing").text
    # Of an error there is no menu.
    assert "<nav" not in menu
    seen = [page for page, roles in PAGES.items() if role in roles]
    text = browser.get(seen[0]).text
    for page in PAGES:
        assert (f'<a href="{page}"' in text) == (page in seen), page
    for page in seen:
        assert browser.get(page).status_code == 200


def test_a_folder_shows_what_there_is_and_what_is_left_out(anybody: TestClient, folders: FolderTable) -> None:
    assert "No folder yet" in anybody.get("/console/folders").text
    fill(folders, stats("a/b <c>"), stats("pricing"), refreshed(0))
    page = anybody.get("/console/folders?search=a/b").text
    assert "a/b &lt;c&gt;" in page
    assert "pricing" not in page
    folder = anybody.get("/console/folders/a%2Fb%20%3Cc%3E").text
    assert "without a usable label" in folder
    assert "Examples by label, a day a bar" in folder
    assert "/console/fine-tune?data.folders=a%2Fb%20%3Cc%3E" in folder
    assert anybody.get("/console/folders/unknown").status_code == 404


def test_a_policy_explains_itself_and_is_paused_by_an_operator(
    services: Services, settings: Settings, view: SystemView, publisher: MemoryPublisher, explained: DecisionTable
) -> None:
    put(view)
    viewer, operator = (browser_of(services, settings, name) for name in ("viewer", "operator"))
    assert "not decided yet" in viewer.get("/console/policies").text
    explained.apply(Record(decided(START + timedelta(hours=1)).encode()))
    page = viewer.get("/console/policies/support").text
    assert "1,200 of 1,000 new examples" in page
    assert "1h of 6h" in page
    assert "Pause" not in page
    assert viewer.post("/console/policies/support/pause").status_code == 403
    assert "Pause" in operator.get("/console/policies/support").text
    assert operator.post("/console/policies/support/pause", follow_redirects=False).status_code == 303
    assert publisher.on(Topic.POLICIES)[0].paused


def test_dead_letters_show_their_cause_and_their_bytes_to_whom_may_read_them(
    services: Services, settings: Settings, letters: DeadLetterTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    del letters

    async def read(*_: Any) -> Record:
        return Record(SECRET)

    monkeypatch.setattr("api.routes.dead_letters.read_record", read)
    monkeypatch.setattr("api.routes.dead_letters.decode_headers", lambda _: {"error": "<b>"})
    operator, anybody = (browser_of(services, settings, name) for name in ("operator", "anybody"))
    page = operator.get("/console/dead-letters").text
    assert "question: too long" in page
    assert "Ada" not in page
    assert "/value" not in page
    assert "/console/dead-letters/0%3A0/value" in anybody.get("/console/dead-letters").text
    assert operator.get("/console/dead-letters/0:0/value").status_code == 403
    value = anybody.get("/console/dead-letters/0:0/value").text
    assert "What does Ada earn?" in value
    assert "<b>" not in value
    assert operator.post("/console/dead-letters/replay", data={}).status_code == 400


def test_an_erasure_is_asked_for_after_its_dry_run_and_the_id_once_more(
    services: Services,
    settings: Settings,
    view: SystemView,
    publisher: MemoryPublisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Counted:
        """The process that counts, with what it found."""

        _processes: Any = None

        def submit(self, *_: Any) -> Any:
            from concurrent.futures import Future

            done: Future[Any] = Future()
            done.set_result([{"folder_id": "pricing", "logs": 3, "feedback": 1, "documents": 0, "passages": 2}])
            return done

        def shutdown(self, **_: Any) -> None:
            """Nothing runs."""

    monkeypatch.setattr("api.routes.erasures.ProcessPoolExecutor", lambda *_: Counted())
    browser = browser_of(services, settings, "privacy")
    fields = {"subject": "user", "subject_id": "u-7", "folder_id": ""}
    dry = browser.post("/console/privacy", data=fields).text
    assert "pricing" in dry
    assert publisher.on(Topic.ERASURES) == []
    wrong = browser.post("/console/privacy", data={**fields, "confirmed": "u-8"})
    assert wrong.status_code == 400
    assert "This is not the id" in wrong.text
    assert publisher.on(Topic.ERASURES) == []
    asked = browser.post("/console/privacy", data={**fields, "confirmed": "u-7"}, follow_redirects=False)
    assert asked.status_code == 303
    [erasure, *_] = publisher.on(Topic.ERASURES)
    assert asked.headers["location"] == f"/console/privacy/{erasure.erasure_id}"
    assert "Not done" in browser.get(asked.headers["location"]).text
    for entry in publisher.audited:
        view.audit.apply(Record(entry.encode()))
    listed = browser.get("/console/privacy").text
    assert f'<a href="/console/privacy/{erasure.erasure_id}">' in listed
    assert "by 0 of 4 partitions" in listed
    assert "at most" in browser.post("/console/privacy", data={**fields, "subject_id": "x" * 2000}).text


def test_the_audit_shows_who_did_what(
    services: Services, settings: Settings, view: SystemView, publisher: MemoryPublisher
) -> None:
    operator = browser_of(services, settings, "operator")
    put(view)
    operator.post("/console/policies/support/pause")
    for entry in publisher.audited:
        view.audit.apply(Record(entry.encode()))
    page = html.unescape(operator.get("/console/audit").text)
    assert "paused a policy" in page
    assert '<a href="/console/policies/support">support</a>' in page
    # Who had set it, and who has paused it.
    assert "</span>ada</del>" in page
    assert "</span>operator</ins>" in page
    for found in ("who=operator", "action=policy.pause", "model=support"):
        assert "paused a policy" in operator.get(f"/console/audit?{found}").text
    for missed in ("who=nobody", "action=policy.resume", "model=sales"):
        assert "No entry" in operator.get(f"/console/audit?{missed}").text
    assert 'value="No Name"' in operator.get("/console/audit?model=No+Name").text


@pytest.mark.parametrize(
    ("action", "target", "model", "address"),
    [
        ("request.create", "support/a b", "support", "/console/jobs/support/a%20b"),
        ("version.reject", "support/1", "support", "/console/models/support/versions/1"),
        ("dead_letter.read", "0:1", None, "/console/dead-letters/0%3A1/value"),
        ("erasure.ask", "e/1", None, "/console/privacy/e%2F1"),
        # Of a later release, or forged.
        ("request.create", "support/1", None, None),
        ("other", "x", "support", None),
        ("preview.read", "..", None, None),
    ],
)
def test_an_entry_leads_to_what_it_is_about(action: str, target: str, model: str | None, address: str | None) -> None:
    assert told({"action": action, "target": target, "model": model}).address == address


def test_dead_letters_are_found_by_cause_and_none_is_replayed_unchosen(
    services: Services, settings: Settings, letters: DeadLetterTable
) -> None:
    del letters
    operator = browser_of(services, settings, "operator")
    page = html.unescape(operator.get("/console/dead-letters").text)
    assert 'href="?cause=question%3A%20too%20long&topic=chat-logs">1</a>' in page
    found = operator.get("/console/dead-letters?cause=question%3A%20too%20long&topic=chat-logs").text
    assert 'value="0:0"' in found
    assert 'value="0:1"' not in found
    again = operator.post("/console/dead-letters/replay", data={"topic": "feedback"})
    assert again.status_code == 400
    assert "Choose at least one" in again.text
    # The filter is kept.
    assert 'value="0:0"' not in again.text
