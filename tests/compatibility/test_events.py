"""What version 1 wrote must be readable for good: a fixture here is never changed, only added."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from foldtune.commands import event_docs
from foldtune.events import EVENTS, Event, json_schemas
from foldtune.reasons import explain, kind_of
from foldtune.snapshot_schema import Label
from foldtune.topics import Topic
from streams.training_sets.fold import CLOCK_SKEW

VERSION_1 = Path(__file__).parent / "v1"
BY_TYPE: dict[str, type[Event]] = {event.model_fields["type"].default: event for event in EVENTS}
DOCS = Path(__file__).parents[2] / "docs"


def fixture(name: str) -> dict[str, Any]:
    """An event as version 1 wrote it."""
    content: dict[str, Any] = json.loads((VERSION_1 / f"{name}.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", BY_TYPE)
def test_version_1_is_read_completely(name: str) -> None:
    event = BY_TYPE[name].model_validate_json(json.dumps(fixture(name)))
    assert BY_TYPE[name].model_validate_json(event.encode()) == event
    # What it says comes out again, so nothing of it was ignored.
    assert within(fixture(name), json.loads(event.encode()))


@pytest.mark.parametrize("name", BY_TYPE)
def test_fields_of_a_later_release_are_ignored(name: str) -> None:
    later = fixture(name) | {"a_field_to_come": {"of": ["any", 1, None]}}
    event = BY_TYPE[name].model_validate_json(json.dumps(later))
    assert event == BY_TYPE[name].model_validate_json(json.dumps(fixture(name)))


@pytest.mark.parametrize("name", BY_TYPE)
def test_an_event_of_a_later_version_is_refused_and_told_from_an_invalid_one(name: str) -> None:
    for later in (fixture(name) | {"schema_version": 2}, {"type": name, "schema_version": 3, "all": "else is new"}):
        with pytest.raises(ValidationError) as refused:
            BY_TYPE[name].model_validate_json(json.dumps(later))
        assert kind_of(refused.value) == "unknown_version"
        (words,) = explain(refused.value)
        version = later["schema_version"]
        assert words.startswith(f"schema_version: version {version} is of a newer release, this one knows them up to 1")
    for invalid in (0, -1, "2", 1.5, None):
        with pytest.raises(ValidationError) as refused:
            BY_TYPE[name].model_validate_json(json.dumps(fixture(name) | {"schema_version": invalid}))
        assert kind_of(refused.value) == "invalid"


def test_every_event_has_a_fixture_and_every_fixture_an_event() -> None:
    assert {path.stem for path in VERSION_1.glob("*.json")} == set(BY_TYPE)


def test_the_page_and_the_schemas_are_up_to_date(tmp_path: Path) -> None:
    written = event_docs.write(tmp_path)
    for path in written:
        committed = DOCS / path.relative_to(tmp_path)
        assert committed.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run: foldtune schemas docs"
    assert {path.stem for path in (DOCS / "schemas").glob("*.json")} == set(json_schemas())


def test_the_page_names_every_topic_and_every_label() -> None:
    assert set(event_docs.TOPIC_EVENTS) == set(event_docs.RESTORED_FROM) == set(Topic)
    assert {row[0] for row in event_docs.LABELS} == set(Label)


def test_the_page_says_by_how_much_a_verdict_may_precede_its_log() -> None:
    assert timedelta(days=1) == CLOCK_SKEW
    assert "more than a day before it" in " ".join(event_docs.page().split())


def within(old: Any, new: Any) -> bool:
    """Whether all that one JSON value says stands in another."""
    if isinstance(old, dict):
        return all(key in new and within(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        return len(old) == len(new) and all(map(within, old, new))
    return bool(old == new)
