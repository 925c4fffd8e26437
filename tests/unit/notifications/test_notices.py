"""What webhooks are told, and what not."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from foldtune.events import Block, Condition, FineTuneStatus, PolicyDecided, RuleFigures, State
from foldtune.settings import NoticeType
from notifications.notices import Notice, notices

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
MONTH_END = datetime(2026, 4, 1, tzinfo=UTC)


def told(event: Any, *, change: bool = True) -> list[Notice]:
    return list(notices(event.encode(), change=change))


def status(state: State, **more: Any) -> FineTuneStatus:
    return FineTuneStatus(request_id="r", model="m", state=state, at=AT, **more)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (status(State.COMPLETED, promoted=True, model_uri="s3://bucket/models/m/1"), NoticeType.COMPLETED),
        (status(State.COMPLETED, promoted=False, reasons=("chance",)), NoticeType.NOT_PROMOTED),
        (status(State.FAILED, reasons=("out of memory",)), NoticeType.FAILED),
        (status(State.REJECTED, reasons=("too little",)), NoticeType.REJECTED),
    ],
)
def test_the_end_of_a_request_is_told_once_under_one_id(event: FineTuneStatus, kind: NoticeType) -> None:
    (notice,) = told(event)
    assert (notice.type, notice.model) == (kind, "m")
    body = json.loads(notice.body)
    assert (body["type"], body["timestamp"]) == (kind, "2026-03-01T12:00:00+00:00")
    assert body["data"]["request_id"] == "r"
    assert body["data"]["reasons"] == list(event.reasons)
    assert body["data"]["model_uri"] == event.model_uri
    (again,) = told(event.model_copy(update={"at": MONTH_END}))
    assert again.id == notice.id
    (other,) = told(event.model_copy(update={"request_id": "s"}))
    assert other.id != notice.id


def test_a_name_that_is_a_type_of_events_changes_nothing() -> None:
    (notice,) = told(FineTuneStatus(request_id="policy_decided", model="policy_decided", state=State.FAILED, at=AT))
    assert notice.type is NoticeType.FAILED


@pytest.mark.parametrize("state", [state for state in State if not state.terminal] + [State.CANCELLED])
def test_states_on_the_way_are_not_told(state: State) -> None:
    assert not told(status(state))


def decision(conditions: tuple[Condition, ...] = (), blocks: tuple[Block, ...] = ()) -> PolicyDecided:
    rules = (RuleFigures(rule="weekly", conditions=conditions, blocks=blocks),)
    return PolicyDecided(model="m", at=AT, decision="blocked", since=AT, rules=rules)


def test_fallen_quality_is_told_once_an_episode() -> None:
    fell = Condition(condition="quality", met=True, figure=0.4, bound=0.5, since=AT, text="likes fell")
    (notice,) = told(decision((fell,)))
    data = json.loads(notice.body)["data"]
    expected = {"model": "m", "rule": "weekly", "decision": "blocked", "figure": 0.4, "bound": 0.5}
    assert data == expected | {"reasons": ["likes fell"]}
    (later,) = told(decision((fell.model_copy(update={"figure": 0.3}),)))
    assert later.id == notice.id
    (another,) = told(decision((fell.model_copy(update={"since": MONTH_END}),)))
    assert another.id != notice.id
    assert not told(decision((fell.model_copy(update={"met": False}),)))
    assert not told(decision((Condition(condition="new_examples", met=True),)))
    assert not told(decision((fell,)), change=False)


@pytest.mark.parametrize("budget", ["monthly_trainings", "monthly_dollars"])
def test_a_budget_that_is_used_up_is_told_once_a_month(budget: str) -> None:
    (notice,) = told(decision(blocks=(Block(block=budget, until=MONTH_END, text="4 of 4"),)))
    assert notice.type is NoticeType.BUDGET_REACHED
    assert json.loads(notice.body)["data"]["until"] == MONTH_END.isoformat()
    # Nothing is known of the dollars without a price.
    assert not told(decision(blocks=(Block(block=budget, text="hourly_price is not set"), Block(block="cooldown"))))


@pytest.mark.parametrize("value", [b"", b"null", b"{}", b'{"type": "policy_decided"}', b"[" * 100_000])
def test_other_records_are_errors(value: bytes) -> None:
    with pytest.raises(ValidationError):
        list(notices(value, change=True))
