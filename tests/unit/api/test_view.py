"""The tables of the view: the same answers as every other reader of the topics."""

import json
import random
from functools import partial

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from api.view.audit import AuditLog
from api.view.follower import UNREADABLE, TopicFollower
from api.view.previews import PreviewBoard
from api.view.requests import RequestPlaces, RequestTable, SortKey, StatusEntry
from foldtune.events import AuditEntry, FineTuneStatus, Preview, State, now
from foldtune.settings import KafkaSettings
from foldtune.status_order import StatusRecord, merge_status, select_status
from foldtune.topics import Topic

from .conftest import Record, status_record

MOMENT = now()


def is_of(model: str | None, entry: StatusEntry) -> bool:
    return model in {None, entry.model}


def test_statuses_reread_after_a_restart_change_nothing() -> None:
    table = RequestTable()
    history = [status_record(offset, state) for offset, state in enumerate((State.ACCEPTED, State.RUNNING))]
    for record in (*history, *history):
        table.apply(record)
    entry = table.get("support", "r-1")
    assert entry
    assert entry.json == history[-1].value
    assert len(table) == 1


STATUSES = st.lists(
    st.builds(
        FineTuneStatus,
        request_id=st.just("r"),
        model=st.sampled_from(["a", "b"]),
        state=st.sampled_from([State.ACCEPTED, State.RUNNING, State.CANCELLED, State.COMPLETED]),
        at=st.just(MOMENT),
        log_url=st.sampled_from([None, "https://logs.example/1"]),
        run_continues=st.sampled_from([None, True]),
    ),
    max_size=7,
)


@given(STATUSES, st.randoms(use_true_random=False))
def test_the_view_has_what_the_one_rule_of_all_readers_says(
    statuses: list[FineTuneStatus], chance: random.Random
) -> None:
    records = [StatusRecord(partition=0, offset=number, status=status) for number, status in enumerate(statuses)]
    chance.shuffle(records)
    table = RequestTable()
    known: tuple[StatusRecord, ...] = ()
    for record in records:
        table.apply(Record(record.status.encode(), record.offset))
        known = merge_status(known, record)
    for model in ("a", "b", None):
        entry = table.find("r", partial(is_of, model))
        assert (entry.status() if entry else None) == select_status(known, model)
    listed = [(entry.model, entry.request_id) for entry in table.page(10, lambda _: True).entries]
    assert len(listed) == len(set(listed)) == len(known)


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"[]", b"\xff", b"{}", b"[" * 100_000, status_record().value.replace(b'"accepted"', b'"unheard"')],
)
def test_what_is_no_status_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  msgspec's words
        RequestTable().apply(Record(value))


def test_a_status_of_a_newer_release_is_refused() -> None:
    value = status_record().value.replace(b'"schema_version":1', b'"schema_version":2')
    with pytest.raises(ValueError, match="newer release"):
        RequestTable().apply(Record(value))


def test_a_request_that_moves_is_listed_once() -> None:
    table = RequestTable()
    for offset in range(5):
        table.apply(status_record(offset, State.RUNNING))
    page = table.page(10, lambda _: True)
    assert [entry.offset for entry in page.entries] == [4]
    assert page.after is None
    assert table.page(10, lambda _: True, SortKey(0.0, "a", "r")).entries == []


def test_the_first_event_of_a_request_is_where_it_stands() -> None:
    places = RequestPlaces()
    for offset, value in enumerate(
        (
            b'{"request_id": "r", "model": "m"}',
            b'{"type": "fine_tune_requested", "request_id": "r", "model": "m"}',
            b'{"type": "fine_tune_cancelled", "request_id": "c", "model": "m"}',
        )
    ):
        places.apply(Record(value, offset))
    assert places.get("m", "r") == (0, 0)
    assert places.get("m", "c") is None


def test_the_audit_log_has_each_of_the_newest_entries_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.view.audit.MAX_ENTRIES", 3)
    log = AuditLog()
    for number in (1, 1, 2, 3, 4):
        entry = AuditEntry(audit_id=f"{number}", at=MOMENT, who="ada", action="request.create", target="m/r")
        log.apply(Record(entry.encode()))
    first, after = log.page(2, lambda _: True)
    rest, end = log.page(2, lambda _: True, after)
    assert [entry.audit_id for entry in (*first, *rest)] == ["4", "3", "2"]
    assert end is None


def test_large_entries_of_the_audit_log_displace_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.view.audit.MAX_BYTES", 3_000)
    log = AuditLog()
    for number in range(5):
        after = {"text": "x" * 1_000}
        entry = AuditEntry(
            audit_id=f"{number}", at=MOMENT, who="ada", action="request.create", target="m/r", after=after
        )
        log.apply(Record(entry.encode()))
    assert [entry.audit_id for entry in log.page(10, lambda _: True)[0]] == ["4", "3"]


@pytest.mark.parametrize("error", [TypeError("a defect"), ValueError("unreadable")])
def test_one_record_does_not_end_the_view_of_all_others(error: Exception) -> None:
    applied: list[int] = []

    def apply(record: Record) -> None:
        if record.offset == 1:
            raise error
        applied.append(record.offset)

    topic = Topic.POLICIES
    follower = TopicFollower(KafkaSettings(), {topic: 1}, apply)
    count = UNREADABLE.labels(topic.label)._value.get()
    for offset in range(3):
        follower._apply_one(Record(b"{}", offset, topic=topic.label))
    assert applied == [0, 2]
    assert UNREADABLE.labels(topic.label)._value.get() == count + 1


def test_what_cannot_be_read_is_not_quoted_in_the_log() -> None:
    topic = Topic.PREVIEWS
    board = PreviewBoard()
    follower = TopicFollower(KafkaSettings(), {topic: 1}, board.apply)
    value = Preview(preview_id="p", partition=0, at=MOMENT).encode()[:-1] + b',"logs":["What does Ada earn?"]}'
    with board.expect("p", 1), structlog.testing.capture_logs() as logs:
        follower._apply_one(Record(value, topic=topic.label))
    [line] = logs
    assert line["event"] == "unreadable record left out"
    assert "logs.0" in line["error"]
    assert "Ada" not in str(line)


def test_names_too_long_to_be_kept_are_refused() -> None:
    long = "r" * 129
    with pytest.raises(ValueError, match="128"):
        RequestTable().apply(Record(status_record().value.replace(b"r-1", long.encode())))
    with pytest.raises(ValueError, match="128"):
        RequestPlaces().apply(Record(json.dumps({"request_id": long, "model": "m"}).encode()))
