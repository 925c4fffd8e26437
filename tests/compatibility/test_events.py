"""What version 1 wrote must be readable for good: a fixture here is never changed, only added."""

import json
from pathlib import Path
from typing import Any

import pytest

from foldtune.commands import event_docs
from foldtune.events import EVENTS, Event, json_schemas
from foldtune.topics import Topic

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
    assert _within(fixture(name), json.loads(event.encode()))


@pytest.mark.parametrize("name", BY_TYPE)
def test_fields_of_a_later_version_are_ignored(name: str) -> None:
    later = fixture(name) | {"schema_version": 2, "a_field_to_come": {"of": ["any", 1, None]}}
    event = BY_TYPE[name].model_validate_json(json.dumps(later))
    assert event.schema_version == 2
    assert "a_field_to_come" not in event.encode().decode()


def test_every_event_has_a_fixture_and_every_fixture_an_event() -> None:
    assert {path.stem for path in VERSION_1.glob("*.json")} == set(BY_TYPE)


def test_the_page_and_the_schemas_are_up_to_date(tmp_path: Path) -> None:
    written = event_docs.write(tmp_path)
    for path in written:
        committed = DOCS / path.relative_to(tmp_path)
        assert committed.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run: foldtune schemas docs"
    assert {path.stem for path in (DOCS / "schemas").glob("*.json")} == set(json_schemas())


def test_the_page_names_every_topic() -> None:
    assert set(event_docs.TOPIC_EVENTS) == set(Topic)


def _within(old: Any, new: Any) -> bool:
    if isinstance(old, dict):
        return all(key in new and _within(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        return len(old) == len(new) and all(map(_within, old, new))
    return bool(old == new)
