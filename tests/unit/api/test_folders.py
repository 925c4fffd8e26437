"""``/folders``: what workers have counted, by pages, searches and days, for those who may see it."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.context import Services
from api.view.folders import FolderTable
from api.view.system import SystemView
from foldtune.events import AgentCount, FolderDay, FolderStats, FolderStatsRefreshed

from .conftest import Record, bearer, client_of

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
FIRST = date(2026, 5, 1)
COUNTED = ("logs", "cited", "cited_first", "liked", "disliked")


def day(number: int, *, logs: int = 5, **fields: Any) -> FolderDay:
    labels = {"cited": number % 3, "liked": 1, "disliked": 1}
    defaults: dict[str, Any] = {"labels": labels, "cited": 4, "cited_first": 3, "liked": 1, "disliked": 1}
    return FolderDay(day=FIRST + timedelta(days=number), logs=logs, **defaults | fields)


def stats(folder_id: str = "handbook", partition: int = 0, **fields: Any) -> FolderStats:
    defaults: dict[str, Any] = {
        "at": NOW,
        "examples": 8,
        "documents": 3,
        "newest_log_at": NOW - timedelta(hours=1),
        "days": tuple(day(number) for number in range(4)),
        "agents": (AgentCount(agent_id="a", labels={"cited": 3, "disliked": 4}), AgentCount(agent_id="b")),
        "other_agents": {"liked": 4},
        "left_out": {"no label": 2},
    }
    return FolderStats(folder_id=folder_id, partition=partition, **defaults | fields)


def refreshed(partition: int, **fields: Any) -> FolderStatsRefreshed:
    return FolderStatsRefreshed(partition=partition, folders=1, **{"at": NOW + timedelta(minutes=1)} | fields)


@pytest.fixture
def folders(view: SystemView, monkeypatch: pytest.MonkeyPatch) -> FolderTable:
    monkeypatch.setattr(SystemView, "folders", view._folders)
    return view._folders


def fill(folders: FolderTable, *events: FolderStats | FolderStatsRefreshed) -> None:
    for event in events:
        folders.apply(Record(event.encode()))


def test_a_folder_has_its_figures_by_day_label_and_agent(client: TestClient, folders: FolderTable) -> None:
    fill(folders, stats(), refreshed(0))
    found = client.get("/folders/handbook").json()
    assert {name: found[name] for name in ("logs", "examples", "documents", "left_out")} == {
        "logs": 20,
        "examples": 7,
        "documents": 3,
        "left_out": {"no label": 2},
    }
    assert found["labels"] == {"cited": 3, "disliked": 4, "liked": 4}
    assert [(item["day"], item["examples"]) for item in found["days"]] == [
        ("2026-05-01", 1),
        ("2026-05-02", 2),
        ("2026-05-03", 3),
        ("2026-05-04", 1),
    ]
    assert found["days"][0]["labels"] == {"disliked": 1, "liked": 1}
    assert [(item["agent_id"], item["examples"]) for item in found["agents"]] == [("a", 3), ("b", 0)]
    assert found["other_agents"] == {"liked": 4}
    assert datetime.fromisoformat(found["as_of"]) == NOW + timedelta(minutes=1)
    assert client.get("/folders/nobodys").status_code == 404


def test_counts_follow_the_days_that_are_asked_for(client: TestClient, folders: FolderTable) -> None:
    """Every range of days, against an exact count of them."""
    days = tuple(day(number) for number in range(4))
    fill(folders, stats(days=days))
    bounds = [None, *(FIRST + timedelta(days=number) for number in range(5))]
    for since in bounds:
        for until in bounds:
            params = {"since": since, "until": until}
            answer = client.get("/folders/handbook", params={name: str(at) for name, at in params.items() if at})
            if since and until and since >= until:
                assert answer.status_code == 400
                assert answer.json()["fields"][0]["name"] == "since"
                continue
            inside = [item for item in days if (since or date.min) <= item.day < (until or date.max)]
            found = answer.json()
            assert {name: found[name] for name in COUNTED} == {
                name: sum(getattr(item, name) for item in inside) for name in COUNTED
            }
            assert found["examples"] == sum(item.labels["cited"] + item.labels["liked"] for item in inside)
            assert len(found["days"]) == len(inside)
            assert found["complete"]
            assert found["documents"] == 3


@pytest.mark.parametrize(
    ("params", "logs", "complete"),
    [
        ({}, 120, True),
        ({"until": "2026-05-01"}, 100, True),
        # The sum is of days up to the 30th of April, and nobody knows since when.
        ({"since": "2026-04-30"}, 20, False),
        ({"until": "2026-04-30"}, 0, False),
        ({"since": "2026-05-01"}, 20, True),
    ],
)
def test_a_range_that_divides_the_sum_of_earlier_days_says_so(
    client: TestClient, folders: FolderTable, params: dict[str, str], logs: int, complete: bool
) -> None:
    fill(folders, stats(earlier=day(-1, logs=100)))
    found = client.get("/folders/handbook", params=params).json()
    assert (found["logs"], found["complete"]) == (logs, complete)


def test_folders_are_listed_by_pages_and_found_by_their_ids(client: TestClient, folders: FolderTable) -> None:
    names = [f"team-{number:02d}/Guide" for number in range(25)] + ["Other/guide", "pricing"]
    fill(folders, *map(stats, names))

    def listed(**params: Any) -> list[str]:
        found, cursor = [], None
        while True:
            answer = client.get("/folders", params={"limit": 4, **params, **({"cursor": cursor} if cursor else {})})
            found += [item["folder_id"] for item in answer.json()["items"]]
            if (cursor := answer.json()["next"]) is None:
                return found

    assert listed() == sorted(names)
    assert listed(prefix="team-1") == names[10:20]
    assert listed(search="GUIDE") == ["Other/guide", *names[:25]]
    assert listed(prefix="team-2", search="3/g") == ["team-23/Guide"]
    assert listed(search="nothing") == []
    assert client.get("/folders/team-03/Guide").json()["folder_id"] == "team-03/Guide"


def test_the_list_shows_the_newest_days_and_sums_of_all(client: TestClient, folders: FolderTable) -> None:
    fill(folders, stats(days=tuple(day(number) for number in range(40))))
    (item,) = client.get("/folders").json()["items"]
    assert item["logs"] == 200
    assert [found["day"] for found in item["days"]] == [str(FIRST + timedelta(days=number)) for number in range(10, 40)]
    (item,) = client.get("/folders", params={"newest_days": 2}).json()["items"]
    assert ([found["day"] for found in item["days"]], item["logs"]) == (["2026-06-08", "2026-06-09"], 200)


def test_the_days_of_folders_are_added_up(services: Services, folders: FolderTable) -> None:
    """Also after new figures, and not those of folders that a caller may not see."""
    fill(folders, stats(), stats("pricing", days=(day(0), day(9, logs=1))), stats("pricing", 1, days=(day(0),)))
    fill(
        folders,
        stats(days=(day(3, logs=9),)),
        FolderStats(folder_id="gone", partition=0, at=NOW, examples=0, documents=0),
    )
    client = client_of(services, "anybody")

    def added(**params: Any) -> dict[int, int]:
        items = client.get("/logs-per-day", params=params).json()["items"]
        return {(date.fromisoformat(item["day"]) - FIRST).days: item["logs"] for item in items}

    assert added() == {0: 10, 3: 9, 9: 1}
    assert added(folder="pricing") == {0: 10, 9: 1}
    assert added(folder=["handbook", "nobodys"]) == {3: 9}
    assert client.get("/logs-per-day", params={"folder": [str(number) for number in range(101)]}).status_code == 400
    fill(folders, stats(days=()), stats("pricing", days=()), stats("pricing", 1, days=()))
    assert added() == {}
    fill(folders, stats(), stats("pricing"))
    client = client_of(services, "of-handbook")
    assert added() == dict.fromkeys(range(4), 5)
    assert client.get("/logs-per-day", params={"folder": "pricing"}).status_code == 403


def test_the_list_says_how_old_its_figures_are(client: TestClient, folders: FolderTable) -> None:
    fill(folders, stats(), refreshed(0), refreshed(1), refreshed(2))
    assert client.get("/folders").json()["as_of"] is None
    since = NOW - timedelta(hours=1)
    fill(folders, refreshed(3, pending=2, pending_since=since), stats("other", 3, at=NOW - timedelta(hours=2)))
    answer = client.get("/folders").json()
    assert datetime.fromisoformat(answer["as_of"]) == since
    assert answer["pending"] == 2
    ages = {item["folder_id"]: datetime.fromisoformat(item["as_of"]) for item in answer["items"]}
    assert ages == {"handbook": NOW + timedelta(minutes=1), "other": since}


def test_a_folder_in_two_partitions_has_the_sum_of_both(client: TestClient, folders: FolderTable) -> None:
    fill(folders, stats(), stats(partition=1, days=(day(1), day(9)), newest_log_at=NOW))
    found = client.get("/folders/handbook").json()
    assert (found["logs"], found["documents"], len(found["days"])) == (30, 6, 5)
    assert found["days"][1]["logs"] == 10
    assert datetime.fromisoformat(found["newest_log_at"]) == NOW


def test_a_folder_of_which_nothing_is_left_is_gone(client: TestClient, folders: FolderTable) -> None:
    fill(folders, stats(), FolderStats(folder_id="handbook", partition=0, at=NOW, examples=0, documents=0))
    assert client.get("/folders").json()["items"] == []
    assert client.get("/folders/handbook").status_code == 404


def test_a_grant_for_folders_shows_these_alone(services: Services, folders: FolderTable) -> None:
    fill(folders, stats(), stats("pricing"))
    client = client_of(services, "of-handbook")
    assert [item["folder_id"] for item in client.get("/folders").json()["items"]] == ["handbook"]
    assert client.get("/folders/handbook").status_code == 200
    assert client.get("/folders/pricing").status_code == 403
    # Folders are of no model: who trains one of them sees what there is to train on.
    assert len(client.get("/folders", headers=bearer("of-support")).json()["items"]) == 2


def test_a_cursor_says_nothing_of_folders_that_its_caller_may_not_see(
    services: Services, folders: FolderTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.view.folders._MAX_LOOKED_AT", 2)
    fill(folders, *(stats(f"a-secret-{number}") for number in range(5)), stats())
    answer = client_of(services, "of-handbook").get("/folders").json()
    assert [item["folder_id"] for item in answer["items"]] == ["handbook"]
    assert answer["next"] is None


@pytest.mark.parametrize("field", ["at", "newest_log_at", "pending_since"])
def test_figures_of_a_time_without_a_zone_are_refused(field: str, client: TestClient, folders: FolderTable) -> None:
    fill(folders, stats(), refreshed(0))
    whole = refreshed(0, pending=1, pending_since=NOW) if field == "pending_since" else stats()
    event = json.loads(whole.encode()) | {field: "2026-06-01T12:00:00"}
    with pytest.raises(ValueError, match="timezone"):
        folders.apply(Record(json.dumps(event).encode()))
    assert client.get("/folders/handbook").status_code == 200


@pytest.mark.parametrize(
    "value",
    [b"\xff", b"{}", b'{"type": "folder_stats"}', b'{"type": "other"}', b"[]", stats().encode()[:-1]],
)
def test_unreadable_figures_are_refused(value: bytes) -> None:
    table = FolderTable()
    with pytest.raises(ValueError, match=r"."):
        table.apply(Record(value))
    with pytest.raises(ValueError, match="newer release"):
        table.apply(Record(stats().encode().replace(b'"schema_version":1', b'"schema_version":9')))
    assert table.names(9, lambda _: True) == ([], None)


def test_a_day_as_a_number_is_refused(client: TestClient) -> None:
    answer = client.get("/folders", params={"since": "86400"})
    assert answer.status_code == 400
    assert answer.json()["errors"][0].startswith("since: should be written as in 2026-01-31 or")
