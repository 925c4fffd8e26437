"""``/dead-letters`` and ``/erasures``."""

from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ClassVar, NamedTuple

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.routes import dead_letters as routes
from api.view.dead_letters import DeadLetterTable
from api.view.system import SystemView
from foldtune.dead_letters import LETTER_HEADER, dead_letter_headers
from foldtune.events import ErasureConfirmed, now
from foldtune.topics import Topic

from .conftest import MemoryPublisher, Record, bearer, client_of

SECRET = b'{"folder_id": "handbook", "question": "What does Ada earn?"}'


class Letter(NamedTuple):
    """A record of ``dead-letters``."""

    offset: int
    value: bytes
    headers: list[tuple[str, bytes]]
    partition: int = 0
    key: bytes | None = b"handbook"

    @property
    def timestamp(self) -> int:
        return 1_790_000_000_000 + self.offset


LETTERS = [
    Letter(0, SECRET, dead_letter_headers("question: too long", "chat-logs", 1, 7)),
    Letter(1, b'{"folder_id": "pricing"}', dead_letter_headers("occurred_at: missing", "feedback", 1, 8)),
    Letter(2, b"\xff", dead_letter_headers("body: not JSON", "chat-logs", 2, 9), key=None),
]


@pytest.fixture
def letters(view: SystemView, monkeypatch: pytest.MonkeyPatch) -> DeadLetterTable:
    monkeypatch.setattr(SystemView, "dead_letters", view._dead_letters)
    for record in LETTERS:
        view._dead_letters.apply(record)
    return view._dead_letters


def test_of_too_many_dead_letters_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.view.dead_letters.MAX_BYTES", 3 * 1_100)
    table = DeadLetterTable()
    for offset in range(0, 20, 2):
        table.apply(Letter(offset, SECRET, dead_letter_headers("question: too long", "chat-logs", 1, offset)))
        receipt = [(LETTER_HEADER, f"0:{offset}".encode()), *dead_letter_headers("", "chat-logs", 1, 100 + offset)]
        table.apply(Letter(offset + 1, b"", receipt))
    found, _ = table.page(10, lambda _: True)
    assert [(letter.id, letter.replayed) for letter in found] == [("0:18", True), ("0:16", True), ("0:14", True)]
    assert len(table._index._receipts) == 3
    assert list(table.causes.values()) == [3]


def test_dead_letters_are_counted_by_cause_and_found_by_it(
    client: TestClient, services: Services, letters: DeadLetterTable
) -> None:
    for offset, reason in ((3, "a.0: 12 of 'ab', 2026-03-01T12:00:00Z"), (4, "a.13: 1,300 of 'c d', 2027-03-01")):
        letters.apply(Letter(offset, SECRET, dead_letter_headers(reason, "chat-logs", 1, 10 + offset)))
    causes = client.get("/dead-letters").json()["causes"]
    assert causes[0] == {"topic": "chat-logs", "cause": "a.N: N of …, …", "count": 2}
    assert sum(cause["count"] for cause in causes) == 5
    found = client.get("/dead-letters", params={"cause": "a.N: N of …, …", "topic": "chat-logs"}).json()["items"]
    assert [item["id"] for item in found] == ["0:4", "0:3"]
    # Of folders that one may not know of, there may be letters.
    assert client_of(services, "of-handbook").get("/dead-letters").json()["causes"] is None


@pytest.mark.usefixtures("letters")
def test_dead_letters_are_listed_without_their_bytes(client: TestClient) -> None:
    first = client.get("/dead-letters", params={"limit": 2}).json()
    rest = client.get("/dead-letters", params={"limit": 2, "cursor": first["next"]}).json()
    items = [*first["items"], *rest["items"]]
    assert [item["id"] for item in items] == ["0:2", "0:1", "0:0"]
    assert items[-1] | {"at": None} == {
        "id": "0:0",
        "topic": "chat-logs",
        "partition": 1,
        "offset": 7,
        "at": None,
        "error": "question: too long",
        "folder_id": "handbook",
        "bytes": len(SECRET),
        "failures": 1,
        "replayed": False,
    }
    found = client.get("/dead-letters", params={"topic": "feedback"}).json()["items"]
    assert [item["id"] for item in found] == ["0:1"]
    assert client.get("/dead-letters/0:2").json()["folder_id"] is None
    assert client.get("/dead-letters/0:9").status_code == 404
    assert client.get("/dead-letters/x").status_code == 400


@pytest.mark.usefixtures("letters")
def test_a_grant_for_a_folder_covers_the_dead_letters_that_name_it(services: Services) -> None:
    client = client_of(services, "of-handbook")
    assert [item["id"] for item in client.get("/dead-letters").json()["items"]] == ["0:0"]
    assert client.get("/dead-letters/0:1").status_code == 403
    assert client.post("/dead-letters/replay", json={"ids": ["0:0", "0:2"]}).status_code == 403
    assert client_of(services, "of-support").get("/dead-letters").json()["items"] == []


@pytest.mark.usefixtures("letters")
def test_each_read_of_the_bytes_is_audited(
    client: TestClient, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def record(_settings: Any, _topic: Topic, _partition: int, offset: int) -> Letter:
        return LETTERS[offset]

    monkeypatch.setattr(routes, "read_record", record)
    assert client.get("/dead-letters/0:0/value", headers=bearer("operator")).status_code == 403
    shown = client.get("/dead-letters/0:0/value", headers=bearer("privacy")).json()
    assert (shown["text"], shown["key"]) == (SECRET.decode(), "handbook")
    assert shown["headers"]["foldtune-topic"] == "chat-logs"
    assert client.get("/dead-letters/0:2/value").json()["text"] == "\\xff"
    [entry, _] = publisher.audited
    assert (entry.who, entry.action, entry.target, entry.folders) == (
        "privacy",
        "dead_letter.read",
        "0:0",
        ("handbook",),
    )
    publisher.broken = True
    assert client.get("/dead-letters/0:0/value").status_code == 503


def test_a_replay_is_audited_and_names_what_it_refuses(
    client: TestClient, publisher: MemoryPublisher, letters: DeadLetterTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.apply(Letter(3, b"{}", dead_letter_headers("x", "training-jobs", 1, 7)))
    replayed: list[str] = []

    def replay(_settings: Any, chosen: Any, _partitions: Any) -> int:
        replayed.extend(letter.id for letter in chosen)
        return len(replayed)

    monkeypatch.setattr(routes, "replay", replay)
    monkeypatch.setattr(routes, "input_partitions", lambda _: {"chat-logs": 4})
    answer = client.post("/dead-letters/replay", json={"ids": ["0:0", "0:3", "0:0"]}).json()
    assert (answer["replayed"], replayed) == (1, ["0:0"])
    assert answer["refused"] == [{"id": "0:3", "reason": "its origin 'training-jobs' is none of foldtune's inputs"}]
    assert [(entry.action, entry.target) for entry in publisher.audited] == [("dead_letter.replay", "0:0")]
    letters.apply(Letter(4, b"", [*dead_letter_headers("", "chat-logs", 1, 20), (LETTER_HEADER, b"0:0")]))
    assert client.get("/dead-letters/0:0").json()["replayed"]
    for ids in ([], ["x"], ["0:0"] * 101):
        assert client.post("/dead-letters/replay", json={"ids": ids}).status_code == 400


# ── Erasures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def confirmation(erasure_id: str, partition: int, app_id: str = "foldtune") -> Record:
    event = ErasureConfirmed(
        erasure_id=erasure_id, app_id=app_id, partition=partition, at=now(), records=2, compacted_by=now()
    )
    return Record(event.encode())


def test_an_erasure_goes_to_every_partition_and_is_audited_without_the_subject(
    client: TestClient, publisher: MemoryPublisher
) -> None:
    answer = client.post("/erasures", json={"subject": "user", "subject_id": "ada"})
    assert answer.status_code == 202
    events = publisher.on(Topic.ERASURES)
    assert {(event.subject, event.subject_id, event.erasure_id) for event in events} == {
        ("user", "ada", answer.json()["erasure_id"])
    }
    assert len(events) == 4
    [entry] = publisher.audited
    assert (entry.action, entry.target) == ("erasure.ask", answer.json()["erasure_id"])
    assert b"ada" not in entry.encode()


def test_an_erasure_is_done_when_every_partition_of_each_worker_has_confirmed_it(
    client: TestClient, view: SystemView
) -> None:
    assert client.get("/erasures/e-1").json()["done"] is False
    for partition in range(4):
        assert client.get("/erasures/e-1").json()["done"] is False
        view.erasures.apply(confirmation("e-1", partition))
    found = client.get("/erasures/e-1").json()
    assert (found["done"], len(found["confirmations"]), found["compacted_by"] is None) == (True, 4, False)
    view.erasures.apply(confirmation("e-1", 0, "other"))
    assert client.get("/erasures/e-1").json()["done"] is False


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"subject": "person", "subject_id": "ada"}, "subject: "),
        ({"subject": "user"}, "subject_id: "),
        ({"subject": "user", "subject_id": "x" * 257}, "subject_id: "),
        ({"subject": "document", "subject_id": "d"}, "folder_id: "),
        ({"subject": "document", "subject_id": "d", "folder_id": "f", "all_folders": True}, "folder_id: "),
        ({"subject": "folder", "subject_id": "f", "folder_id": "f"}, "folder_id: "),
        ({"subject": "user", "subject_id": "ada", "before": "yesterday"}, "before: "),
        ({"subject": "user", "subject_id": "ada", "before": "2999-01-01T00:00:00Z"}, "before: "),
        ({"subject": "user", "subject_id": "ada", "before": "1969-12-31T00:00:00Z"}, "before: "),
        ({"subject": "user", "subject_id": "ada", "all": True}, "body: unknown fields: all"),
    ],
)
def test_an_erasure_that_is_not_clear_is_refused(
    client: TestClient, publisher: MemoryPublisher, body: dict[str, Any], words: str
) -> None:
    for path in ("/erasures", "/erasures/preview"):
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["errors"][0].startswith(words)
    assert not publisher.events


def test_a_dry_run_whose_process_is_killed_can_be_asked_for_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Executor):
        _processes: ClassVar[dict[int, Any]] = {}

        def submit(self, *_: Any, **__: Any) -> Any:
            raise BrokenProcessPool

    monkeypatch.setattr("api.routes.erasures.ProcessPoolExecutor", lambda *_: Killed())
    answer = client.post("/erasures/preview", json={"subject": "user", "subject_id": "ada"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_a_grant_for_a_folder_erases_only_there(services: Services, publisher: MemoryPublisher) -> None:
    client = client_of(services, "of-handbook")
    for body, code in (
        ({"subject": "user", "subject_id": "ada"}, 403),
        ({"subject": "user", "subject_id": "ada", "folder_id": "pricing"}, 403),
        ({"subject": "folder", "subject_id": "pricing"}, 403),
        ({"subject": "user", "subject_id": "ada", "folder_id": "handbook"}, 202),
        ({"subject": "folder", "subject_id": "handbook"}, 202),
    ):
        assert client.post("/erasures", json=body).status_code == code
