"""What the policy decides, and how it says why: which figure, which bound, since when, what is in the way."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from foldtune.errors import InvalidSettingsError
from foldtune.events import (
    Block,
    Condition,
    FineTuneStatus,
    FolderQuality,
    RetrainingPolicy,
    State,
    TrainingProgressed,
)
from foldtune.knobs import DataSelection, DatasetKnobs, TrainingKnobs, WeightKnobs
from foldtune.policy import Rule
from foldtune.settings import load_settings
from foldtune.testing import FakeClock
from streams.requests import retraining_policy
from streams.requests.retraining_policy import Decision, PolicyState, Situation
from tests.support import fine_tune_request

# A Friday.
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RULE: dict[str, Any] = {"data": {"folders": ["f"]}, "new_examples": 10, "cooldown": "1h"}


class Model:
    """A model with a policy: takes reports, and decides whenever it is asked."""

    def __init__(self, *rules: dict[str, Any], **policy: Any) -> None:
        self.clock = FakeClock(NOW)
        self.state = PolicyState()
        self.situation: dict[str, Any] = {}
        self.policy = RetrainingPolicy(model="m", at=NOW, rules=tuple(map(Rule.model_validate, rules)), **policy)

    def report(
        self, new: int = 0, *, rule: int = 0, partition: int = 0, usable: int | None = 1000, **more: Any
    ) -> None:
        key = self.policy.rules[rule].key
        progress = TrainingProgressed(
            model="m",
            partition=partition,
            new_examples=new,
            usable=usable,
            rule=key,
            **{"trained_request_id": self.state.of(key).trained_request_id} | more,
        )
        self.state = retraining_policy.with_progress(self.state, progress)

    def decide(self, after: timedelta = timedelta(0)) -> Decision:
        now = self.clock.advance(after)
        decision = retraining_policy.decide(self.policy, self.state, Situation(**self.situation), now)
        self.state = decision.state
        return decision

    def asks(self, after: timedelta = timedelta(0)) -> bool:
        return self.decide(after).request is not None

    def condition(self, rule: int = 0) -> Condition:
        return (
            retraining_policy.decide(self.policy, self.state, Situation(**self.situation), self.clock())
            .event.rules[rule]
            .conditions[0]
        )

    def blocks(self, after: timedelta = timedelta(0)) -> list[Block]:
        decision = self.decide(after)
        assert decision.request is None
        return list(decision.event.rules[0].blocks)

    def trained(self, request_id: str, **data: Any) -> None:
        request = fine_tune_request(request_id, model="m", data=DataSelection(**data))
        request = request.model_copy(update={"requested_at": self.clock()})
        self.state = retraining_policy.with_training(self.state, self.policy, request, self.clock())

    def ended(self, state: State, *reasons: str) -> None:
        request_id = self.state.last_request_id or ""
        self.situation["last_status"] = FineTuneStatus(
            request_id=request_id, model="m", state=state, at=self.clock(), reasons=reasons
        )


# ── New examples ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_due_once_all_partitions_together_have_enough() -> None:
    model = Model(RULE)
    model.report(6)
    assert not model.asks()
    model.report(7)
    model.report(3, partition=1)
    decision = model.decide()
    request = decision.request
    assert request
    assert (request.model, request.origin, request.data.folders) == ("m", "policy", ("f",))
    assert request.requested_by == "retraining policy, rule default"
    event = decision.event
    assert (event.decision, event.rule, event.request_id, event.since) == (
        "requested",
        "default",
        request.request_id,
        NOW,
    )
    (condition,) = event.rules[0].conditions
    assert (condition.condition, condition.met, condition.figure, condition.bound) == ("new_examples", True, 10, 10)
    assert condition.text == "10 of 10 new labelled examples"


def test_a_repeated_decision_is_the_same_request_and_the_next_one_another() -> None:
    model = Model(RULE)
    model.report(10)
    before = model.state
    first = model.decide().request
    again = retraining_policy.decide(model.policy, before, Situation(), NOW + timedelta(minutes=1)).request
    model.ended(State.CANCELLED)
    second = model.decide(HOUR).request
    assert first
    assert again
    assert second
    assert first.request_id == again.request_id != second.request_id


@pytest.mark.parametrize(
    ("data", "resets"),
    [
        ({}, True),
        ({"folders": ("f",)}, True),
        ({"folders": ("f", "g")}, True),
        ({"folders": ("g",)}, False),
        ({"agents": ("a",)}, False),
        ({"start": NOW - 90 * DAY}, False),
        ({"end": NOW - DAY}, False),
        ({"end": NOW + DAY}, True),
    ],
)
def test_only_a_training_that_covers_the_folders_of_a_rule_resets_its_count(data: dict[str, Any], resets: bool) -> None:
    model = Model(RULE)
    model.report(100)
    model.trained("r1", **data)
    assert model.condition().figure == (0 if resets else 100)
    # What is reported late counts from before the training.
    model.report(100, trained_request_id=None)
    assert model.condition().figure == (0 if resets else 100)
    model.report(12, trained_request_id="r1")
    assert model.condition().figure == (12 if resets else 100)


def test_a_date_range_that_begins_before_the_last_training_has_all_that_is_new() -> None:
    model = Model(RULE)
    model.trained("r1")
    model.clock.advance(10 * DAY)
    model.report(20)
    model.trained("r2", start=NOW + DAY)
    assert model.condition().figure == 20
    model.trained("r3", start=NOW - DAY)
    assert model.condition().figure == 0


def test_a_rule_with_other_folders_counts_anew() -> None:
    model = Model(RULE)
    model.trained("r1", folders=("f",))
    model.report(9)
    former = model.policy
    model.policy = Model(RULE | {"data": {"folders": ["f", "g"]}}).policy
    assert model.condition().figure == 0
    # A report of what it was.
    model.report(9, rule=0, trained_request_id="r1")
    assert model.condition().figure == 0
    model.report(30)
    assert model.condition().figure == 30
    # Nothing is reported again for the one that it was.
    model.policy = former
    assert model.condition().figure == 9


def test_what_is_kept_of_rules_that_are_gone_is_bounded() -> None:
    model = Model(RULE)
    model.report(5)
    for number in range(100):
        model.decide()
        progress = TrainingProgressed(model="m", partition=0, new_examples=1, rule=f"gone-{number}")
        model.state = retraining_policy.with_progress(model.state, progress)
    assert len(model.state.rules) == 40
    model.decide(HOUR)
    assert model.condition().figure == 5


# ── Documents ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_due_once_the_share_of_changed_documents_is_reached() -> None:
    model = Model({"changed_documents": 0.2})
    model.report(documents=30, changed_documents=5)
    model.report(partition=1, documents=70, changed_documents=14)
    assert not model.asks()
    assert model.condition().text == "19 of 100 documents changed (19.0%), at 20.0%"
    model.report(partition=1, documents=70, changed_documents=15)
    assert model.asks()


def test_a_folder_without_documents_has_no_share() -> None:
    model = Model({"changed_documents": 0.2})
    model.report(changed_documents=5)
    assert (model.condition().figure, model.asks()) == (0.0, False)


# ── Calendar ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_calendar_asks_once_each_time() -> None:
    model = Model({"calendar": {"days": ["sat", "mon"], "at": "03:00"}, "cooldown": "0s"})
    model.report()
    assert not model.asks()
    assert model.decide().event.next_at == datetime(2026, 1, 3, 3, tzinfo=UTC)
    assert model.condition().text == "next at 2026-01-03T03:00+00:00"
    assert model.asks(15 * HOUR)
    model.ended(State.COMPLETED)
    assert not model.asks(DAY)
    assert model.asks(DAY)


def test_a_time_that_was_missed_is_made_up_for_and_one_before_the_rule_is_not() -> None:
    model = Model({"calendar": {"days": ["fri"], "at": "11:00"}})
    model.report()
    assert not model.asks()
    # Nobody was there on the next Friday.
    decision = model.decide(8 * DAY)
    assert decision.request
    assert decision.event.rules[0].conditions[0].figure == (DAY + HOUR).total_seconds()


def test_a_calendar_goes_by_its_time_zone_also_where_the_clocks_change() -> None:
    model = Model({"calendar": {"at": "02:30"}, "time_zone": "Europe/Berlin", "cooldown": "0s"})
    model.clock.moment = datetime(2026, 3, 28, 12, tzinfo=UTC)
    model.report()
    model.decide()
    # There is no 02:30 on the 29th: it is taken by the offset before the change.
    assert model.decide().event.next_at == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    model.clock.moment = datetime(2026, 3, 29, 12, tzinfo=UTC)
    assert model.asks()
    assert model.decide().event.rules[0].conditions[0].text == "next at 2026-03-30T00:30+00:00"


# ── Quality ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def quality(good: int, of: int, good_before: int, of_before: int, measure: str = "cited_first") -> FolderQuality:
    return FolderQuality(
        folder_id="f", measure=measure, good=good, all=of, good_before=good_before, all_before=of_before
    )


def test_a_fall_of_quality_that_is_hardly_chance_asks() -> None:
    model = Model({"quality": {}})
    model.report(quality_tests=3)
    assert not model.asks()
    assert model.condition().text == "no fall by 0.05 or more, of 3 figures compared"
    model.report(quality=(quality(60, 100, 340, 400),), quality_tests=3)
    assert model.condition().text.startswith(
        "cited_first of folder 'f' fell from 340 of 400 to 60 of 100, by chance with p = "
    )
    assert model.asks()


def test_what_may_be_chance_does_not_ask() -> None:
    model = Model({"quality": {}})
    # A fall by ten points, of twenty answers.
    model.report(quality=(quality(15, 20, 340, 400),), quality_tests=3)
    assert not model.asks()
    # One of many folders falls like this by chance.
    model.report(quality=(quality(66, 100, 320, 400),), quality_tests=1)
    assert model.condition().met
    model.report(quality=(quality(66, 100, 320, 400),), quality_tests=300)
    assert not model.condition().met


def test_the_days_before_a_training_are_no_reason_for_the_next() -> None:
    model = Model({"quality": {"window": "7d"}, "cooldown": "0s"})
    model.report(quality=(quality(60, 100, 340, 400),), quality_tests=3)
    assert model.asks()
    model.ended(State.COMPLETED)
    model.trained("r1")
    model.report(quality=(quality(60, 100, 340, 400),), quality_tests=3)
    assert not model.asks(6 * DAY)
    assert "before the training of 2026-01-02T12:00+00:00" in model.condition().text
    assert model.asks(DAY)


# ── What is in the way ───────────────────────────────────────────────────────────────────────────────────────────────


def test_while_a_request_of_the_model_is_under_way_nothing_is_asked() -> None:
    model = Model(RULE)
    model.report(10)
    model.situation["under_way"] = "by-hand"
    (block,) = model.blocks()
    assert (block.block, block.until, block.text) == ("in_flight", None, "request by-hand has not ended")
    model.situation.clear()
    assert model.asks()


def test_a_request_that_was_published_and_not_taken_is_under_way_for_ten_minutes() -> None:
    model = Model(RULE | {"cooldown": "0s"})
    model.report(10)
    assert model.asks()
    (block,) = model.blocks(timedelta(minutes=9))
    assert (block.block, block.until) == ("in_flight", NOW + timedelta(minutes=10))
    # It is in the dead letters, for example.
    assert model.asks(timedelta(minutes=1))


def test_the_next_request_waits_for_the_cooldown() -> None:
    model = Model(RULE)
    model.report(10)
    assert model.asks()
    model.ended(State.COMPLETED)
    (block,) = model.blocks(timedelta(minutes=59))
    assert (block.block, block.until) == ("cooldown", NOW + HOUR)
    assert block.text == f"59m of 1h since request {model.state.last_request_id}"
    assert model.decide().event.next_at == NOW + HOUR
    assert model.asks(timedelta(minutes=1))


@pytest.mark.parametrize(
    ("hours", "at", "until"),
    [
        (("08:00", "18:00"), "2026-01-02T12:00Z", "2026-01-02T17:00Z"),
        (("22:00", "06:00"), "2026-01-02T21:30Z", "2026-01-03T05:00Z"),
        (("22:00", "06:00"), "2026-01-03T04:59Z", "2026-01-03T05:00Z"),
        (("22:00", "06:00"), "2026-01-03T05:00Z", None),
        (("22:00", "06:00"), "2026-01-02T20:59Z", None),
        # From 03:00 clocks are put back to 02:00: both times that they show 02:30.
        (("01:00", "02:45"), "2026-10-25T00:30Z", "2026-10-25T00:45Z"),
        (("01:00", "02:45"), "2026-10-25T01:30Z", "2026-10-25T01:45Z"),
        (("01:00", "02:15"), "2026-10-25T01:30Z", None),
    ],
)
def test_in_quiet_hours_nothing_is_asked(hours: tuple[str, str], at: str, until: str | None) -> None:
    model = Model(RULE | {"quiet_hours": {"start": hours[0], "end": hours[1]}, "time_zone": "Europe/Berlin"})
    model.report(10)
    model.clock.moment = datetime.fromisoformat(at)
    if until is None:
        assert model.asks()
        return
    (block,) = model.blocks()
    assert (block.block, block.until) == ("quiet_hours", datetime.fromisoformat(until))
    assert block.text == f"quiet from {hours[0]} to {hours[1]} (Europe/Berlin)"


@pytest.mark.parametrize(
    ("usable", "text"), [(None, "not counted yet"), (19, "19 usable labelled examples, at least 20")]
)
def test_a_rule_that_would_be_rejected_for_lack_of_usable_examples_does_not_ask(usable: int | None, text: str) -> None:
    model = Model(RULE)
    model.situation["min_examples"] = 20
    model.report(500, usable=usable)
    (block,) = model.blocks()
    assert block.block == "min_examples"
    assert text in block.text
    model.report(500, partition=1, usable=20)
    assert model.asks()


def test_a_rule_may_want_more_usable_examples_than_the_worker() -> None:
    model = Model(RULE | {"min_examples": 300})
    model.report(500, usable=299)
    assert [block.block for block in model.blocks()] == ["min_examples"]
    model.report(500, usable=300)
    assert model.asks()


def test_after_requests_that_failed_the_wait_doubles_up_to_a_day() -> None:
    model = Model(RULE | {"cooldown": "0s"})
    model.report(10)
    waits = []
    for _ in range(10):
        assert model.asks()
        model.ended(State.REJECTED, "data: 0 examples, at least 20")
        (block,) = model.blocks()
        assert block.block == "after_failure"
        assert block.text == f"request {model.state.last_request_id} was rejected: data: 0 examples, at least 20"
        assert block.until
        waits.append(block.until - model.clock())
        model.clock.moment = block.until
    assert waits[:3] == [timedelta(minutes=10), timedelta(minutes=20), timedelta(minutes=40)]
    assert waits[-1] == DAY
    assert model.asks()
    model.ended(State.COMPLETED)
    assert model.asks()
    model.ended(State.FAILED)
    (block,) = model.blocks()
    assert block.until == model.clock() + timedelta(minutes=10)


def test_a_month_has_so_many_trainings() -> None:
    model = Model(RULE | {"cooldown": "0s", "monthly_trainings": 2})
    model.report(10)
    for _ in range(2):
        assert model.asks()
        model.ended(State.COMPLETED)
    (block,) = model.blocks()
    assert (block.block, block.text) == ("monthly_trainings", "2 of 2 trainings in 2026-01")
    assert block.until == datetime(2026, 2, 1, tzinfo=UTC)
    assert not model.asks(29 * DAY)
    assert model.asks(HOUR * 12)


def test_a_month_has_so_many_dollars() -> None:
    model = Model(RULE | {"cooldown": "0s", "monthly_dollars": 5.0})
    model.report(10)
    (block,) = model.blocks()
    assert block.text == "trainer.hourly_price is not set, so nothing can be counted"
    model.situation["hourly_price"] = 2.0
    assert model.asks()
    model.ended(State.COMPLETED)
    status = model.situation["last_status"]
    model.state = retraining_policy.with_end(model.state, status, 3600.0, model.clock())
    # Another's is not the policy's.
    other = status.model_copy(update={"request_id": "by-hand"})
    model.state = retraining_policy.with_end(model.state, other, 36000.0, model.clock())
    assert model.asks()
    model.ended(State.COMPLETED)
    model.state = retraining_policy.with_end(model.state, model.situation["last_status"], 3600.0, model.clock())
    (block,) = model.blocks()
    assert block.text == "4.00 of 5.00 dollars spent in 2026-01, 2.00 by the last training"


def test_a_paused_policy_says_by_whom_and_asks_for_nothing() -> None:
    model = Model(RULE, paused=True, by="ann")
    model.report(10)
    decision = model.decide()
    assert (decision.request, decision.event.decision) == (None, "paused")
    assert decision.event.rules[0].blocks[0].text == "paused by ann at 2026-01-02T12:00+00:00"
    assert decision.event.rules[0].conditions[0].met


def test_without_rules_a_policy_is_off() -> None:
    assert Model().decide().event.decision == "off"


def test_everything_that_is_in_the_way_is_named() -> None:
    model = Model(RULE | {"quiet_hours": {"start": "00:00", "end": "23:59"}, "monthly_dollars": 1.0}, paused=True)
    model.situation.update(min_examples=20, under_way="r")
    model.report(10, usable=0)
    assert [block.block for block in model.blocks()] == [
        "paused",
        "in_flight",
        "quiet_hours",
        "min_examples",
        "monthly_dollars",
    ]
    # Nobody knows when all of them end.
    assert model.decide().event.next_at is None


# ── Several rules ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_rule_of_the_list_that_may_ask_does() -> None:
    rules = (RULE | {"name": "many"}, RULE | {"name": "quiet", "min_examples": 5000}, RULE | {"name": "few"})
    model = Model(*rules)
    for rule, new in ((0, 9), (1, 10), (2, 10)):
        model.report(new, rule=rule)
    decision = model.decide()
    assert (decision.event.decision, decision.event.rule) == ("requested", "few")
    assert [each.rule for each in decision.event.rules] == ["many", "quiet", "few"]


# ── Changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_change_of_the_decision_is_told_and_other_figures_are_none() -> None:
    model = Model(RULE | {"quiet_hours": {"start": "13:00", "end": "14:00"}})
    changes = []

    def step(after: timedelta, new: int | None = None, **situation: Any) -> None:
        model.situation.update(situation)
        if new is not None:
            model.report(new)
        decision = model.decide(after)
        if decision.changed:
            changes.append((decision.event.decision, decision.event.since - NOW, decision.event.at - NOW))

    step(timedelta(0))
    step(timedelta(minutes=10), 5)
    # Quiet hours, in which nothing would be asked anyway, change nothing.
    step(timedelta(minutes=50))
    step(timedelta(minutes=10), 10)
    step(timedelta(minutes=10), 11)
    step(timedelta(minutes=40))
    step(timedelta(minutes=1), under_way="auto")
    assert changes == [
        ("waiting", timedelta(0), timedelta(0)),
        ("blocked", timedelta(minutes=70), timedelta(minutes=70)),
        ("requested", timedelta(minutes=120), timedelta(minutes=120)),
        ("blocked", timedelta(minutes=121), timedelta(minutes=121)),
    ]
    assert model.condition().since == NOW + timedelta(minutes=70)


def test_a_state_of_the_release_before_goes_on() -> None:
    stored = b"""{"trained_request_id": "r1", "new_examples": {"0": 7}, "last_request_id": "auto-1",
        "last_request_at": "2026-01-02T11:30:00Z"}"""
    model = Model(RULE)
    model.state = PolicyState.model_validate_json(stored)
    model.report(10, trained_request_id="r1")
    assert model.condition().figure == 10
    model.ended(State.COMPLETED)
    assert [block.block for block in model.blocks()] == ["cooldown"]
    assert model.asks(timedelta(minutes=30))


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def rules_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> tuple[Rule, ...]:
    monkeypatch.chdir(tmp_path)
    Path("foldtune.toml").write_text(text)
    load_settings.cache_clear()
    return load_settings().policy.rules_of("m")


def test_a_rule_in_the_settings_file_trains_with_its_own_knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[[policy.rules]]\nmodel = 'm'\nnew_examples = 1\ntraining.trainable_layers = 2\nweights.focus = 0.5\n"
    (rule,) = rules_in(tmp_path, monkeypatch, text)
    model = Model()
    model.policy = model.policy.model_copy(update={"rules": (rule,)})
    model.report(1)
    request = model.decide().request
    assert request
    assert (request.training, request.weights) == (TrainingKnobs(trainable_layers=2), WeightKnobs(focus=0.5))
    assert request.dataset == DatasetKnobs()


@pytest.mark.parametrize("folders", ["folders = ['a', 'b']", "data.folders = ['a', 'b']"])
def test_folders_are_those_of_the_knob_and_the_earlier_name_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: str
) -> None:
    (rule,) = rules_in(tmp_path, monkeypatch, f"[[policy.rules]]\nmodel = 'm'\n{folders}\ncooldown = '1d 12h'\n")
    assert (rule.data.folders, rule.cooldown, rule.new_examples) == (("a", "b"), timedelta(hours=36), 1000)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ('[{"model": "m"}, {"model": "m"}]', "rules of the model 'm': several rules have the name 'default'"),
        (
            '[{"model": "m", "folders": ["a"], "data": {"folders": ["a"]}}]',
            "folders is an earlier name of data.folders",
        ),
        ('[{"model": "m", "cooldown": "6 hours"}]', "should be a duration, for example 30s, 6h, 1d 12h or PT6H"),
        ('[{"model": "m", "cooldown": "-1s"}]', "should be a duration"),
        ('[{"model": "m", "calendar": {"days": ["friday"]}}]', "policy.rules.0.calendar.days.0"),
        ('[{"model": "m", "time_zone": "Mars/Olympus"}]', "should be the name of a time zone"),
        ('[{"model": "m", "time_zone": "../../etc/passwd"}]', "should be the name of a time zone"),
        ('[{"model": "m", "quality": {"window": "36h"}}]', "should be a number of whole days"),
        ('[{"model": "m", "quiet_hours": {"start": "22:00", "end": "22:00"}}]', "start and end should differ"),
        ('[{"model": "m", "name": "Nightly"}]', "policy.rules.0.name"),
        ('[{"model": "m", "nwe_examples": 3}]', "unknown setting"),
    ],
)
def test_what_is_wrong_in_a_rule_is_named_with_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str, reason: str
) -> None:
    monkeypatch.setenv("FOLDTUNE_POLICY__RULES", rules)
    with pytest.raises(InvalidSettingsError) as refused:
        rules_in(tmp_path, monkeypatch, "")
    assert "FOLDTUNE_POLICY" in str(refused.value)
    assert reason in str(refused.value)
