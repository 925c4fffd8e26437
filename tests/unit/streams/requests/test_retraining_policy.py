"""When the policy requests a retraining."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from foldtune.events import TrainingProgressed
from foldtune.knobs import DatasetKnobs, TrainingKnobs, WeightKnobs
from foldtune.settings import PolicyRule, load_settings
from streams.requests import retraining_policy
from streams.requests.retraining_policy import PolicyState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULE = PolicyRule(model="m", folders=("f",), new_examples=10, cooldown=timedelta(hours=1))


def progress(partition: int, new: int, trained: str | None = None) -> TrainingProgressed:
    return TrainingProgressed(model="m", partition=partition, new_examples=new, trained_request_id=trained)


def test_a_request_is_due_once_all_partitions_together_have_enough() -> None:
    state = retraining_policy.with_progress(PolicyState(), progress(0, 6))
    assert retraining_policy.due_request(state, RULE, NOW) is None
    state = retraining_policy.with_progress(state, progress(0, 7))
    state = retraining_policy.with_progress(state, progress(1, 3))
    request = retraining_policy.due_request(state, RULE, NOW)
    assert request
    assert (request.model, request.origin, request.data.folders) == ("m", "policy", ("f",))
    assert retraining_policy.due_request(state, RULE, NOW + timedelta(minutes=1)).request_id == request.request_id  # type: ignore[union-attr]


def test_the_next_request_waits_for_the_cooldown_and_has_another_id() -> None:
    state = retraining_policy.with_progress(PolicyState(), progress(0, 10))
    first = retraining_policy.due_request(state, RULE, NOW)
    assert first
    state = retraining_policy.with_request(state, first)
    assert retraining_policy.due_request(state, RULE, NOW + timedelta(minutes=59)) is None
    second = retraining_policy.due_request(state, RULE, NOW + timedelta(minutes=60))
    assert second
    assert second.request_id != first.request_id


def test_a_training_resets_the_counts() -> None:
    state = retraining_policy.with_training(retraining_policy.with_progress(PolicyState(), progress(0, 100)), "r1")
    late = retraining_policy.with_progress(state, progress(0, 100))
    assert retraining_policy.due_request(late, RULE, NOW) is None
    counted = retraining_policy.with_progress(state, progress(0, 10, trained="r1"))
    assert retraining_policy.due_request(counted, RULE, NOW)


def test_a_rule_in_the_settings_file_trains_with_its_own_knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foldtune.toml").write_text(
        "[[policy.rules]]\nmodel = 'm'\nnew_examples = 1\ntraining.trainable_layers = 2\nweights.focus = 0.5\n"
    )
    (rule,) = load_settings().policy.rules
    request = retraining_policy.due_request(retraining_policy.with_progress(PolicyState(), progress(0, 1)), rule, NOW)
    assert request
    assert (request.training, request.weights) == (TrainingKnobs(trainable_layers=2), WeightKnobs(focus=0.5))
    assert request.dataset == DatasetKnobs()
