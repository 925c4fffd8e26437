"""Processes of version 0.1 beside today's: what each writes, the other takes.

Version 0.1 is known by the JSON Schemas that were made of its models: they ignore unknown fields, as its readers do.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from foldtune.events import State, json_schemas
from tests.compatibility.test_events import BY_TYPE, fixture, within

V0_1: dict[str, Any] = {
    line["event"]: line["schema"]
    for line in map(json.loads, (Path(__file__).parent / "schemas_v0_1.jsonl").read_text().splitlines())
}
LOST = {"topic": "chat-logs", "cause": "expired", "records": 3, "last_at": "2026-01-01T12:00:00Z"}
FILE = {"uri": "s3://bucket/key", "sha256": "0" * 64, "rows": 1}
PART = {"lost": [LOST], "ignored": {"old verdicts": 3}, "other_examples": FILE, "other_documents": FILE}
CORRECTION = {"correct_document_id": "d", "correct_folder_id": "f"}
# What events have since: a field that is added to one belongs here.
ADDED: dict[str, dict[str, Any]] = {
    "chat_log": {"feedback": CORRECTION},
    "chat_log_batch": {"logs": [fixture("chat_log") | {"feedback": CORRECTION}]},
    "feedback": {"verdict": CORRECTION},
    "erasure_requested": {"folder_id": "f"},
    "fine_tune_status": {
        "waiting_for": "launcher",
        "run_continues": True,
        "progress": {
            "step": 3,
            "steps": 9,
            "loss": 0.5,
            "examples_per_second": 9.0,
            "eta_seconds": 3.0,
            "validation": [0.61],
        },
        "states": [{"state": "queued", "at": "2026-01-01T12:00:00Z"}],
        "loss_curve": [[3, 0.5]],
        "validation_curve": [0.61],
        "planned": {
            "base_model": {"uri": "hf://org/model", "revision": "1", "weights_sha256": "0" * 64},
            "trainable_layers": "all",
            "examples": 3000,
        },
        "asked_sha256": "0" * 64,
    },
    "model_ready": {
        "compared_with": "20250201T000000Z",
        "seconds": {"training": 812.4, "all": 1000.0},
        "cost_dollars": 0.28,
        "work": {"steps": 96, "examples": 3000, "trainable_layers": "all", "machine": "1 x H100"},
        "snapshot_at": "2025-03-04T09:00:00Z",
        "gate": fixture("model_ready")["gate"] | {"outcome": "too_few_questions"},
        "metrics_after": fixture("model_ready")["metrics_after"] | {"recall_at_50": 0.9, "recall_at_100": 1.0},
    },
    "training_job": {"rejected_versions": ["20250201T000000Z"]},
    "training_finished": {"rules": ["default-0123abcd"], "everything": True},
    "training_progressed": {
        "rule": "default-0123abcd",
        "usable": 300,
        "documents": 40,
        "changed_documents": 4,
        "quality": [{"folder_id": "f", "measure": "liked", "good": 3, "all": 9, "good_before": 80, "all_before": 90}],
        "quality_tests": 3,
    },
    "snapshot_part": PART,
    "snapshot_manifest": {"parts": [fixture("snapshot_part") | PART]},
}
# Knobs that version 0.1 refuses.
NEW_KNOBS = [("training.start", "incumbent"), ("training.older_share", 0.25), ("training.max_tokens", 256)]
# Values that version 0.1 refuses, so that they wait in its dead letters; the changelog says so.
REFUSED = {("erasure_requested", "subject", "folder"), ("erasure_requested", "subject", "agent")}


@pytest.mark.parametrize("name", V0_1)
def test_version_0_1_reads_what_is_written_today(name: str) -> None:
    added = ADDED.get(name, {})
    event = BY_TYPE[name].model_validate_json(json.dumps(fixture(name) | added))
    written = json.loads(event.encode())
    assert within(added, written)
    jsonschema.validate(written, V0_1[name])


@pytest.mark.slow
def test_every_field_that_was_added_is_tried() -> None:
    found = {(name, field) for name in V0_1 for field in _added_fields(V0_1[name], json_schemas()[name])}
    tried = {(name, field) for name, fields in ADDED.items() for field in _names(fields)}
    knobs = {knob.split(".")[1] for knob, _ in NEW_KNOBS}
    assert {(name, field) for name, field in found if (name, field) not in tried and field not in knobs} == set()


@pytest.mark.parametrize(("knob", "value"), NEW_KNOBS)
def test_a_knob_that_version_0_1_refuses_is_written_only_if_it_is_set(knob: str, value: object) -> None:
    section, name = knob.split(".")
    event = BY_TYPE["fine_tune_requested"].model_validate_json(json.dumps(fixture("fine_tune_requested")))
    assert name not in json.loads(event.encode())[section]
    changed = fixture("fine_tune_requested")
    changed[section][name] = value
    written = json.loads(BY_TYPE["fine_tune_requested"].model_validate_json(json.dumps(changed)).encode())
    assert written[section][name] == value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, V0_1["fine_tune_requested"])


@pytest.mark.parametrize("state", State)
def test_every_state_is_known_to_version_0_1(state: State) -> None:
    jsonschema.validate(fixture("fine_tune_status") | {"state": state.value}, V0_1["fine_tune_status"])


@pytest.mark.slow
def test_values_that_version_0_1_refuses_are_those_that_the_changelog_names() -> None:
    new = {
        (name, field, value)
        for name, schema in V0_1.items()
        for field, values in _values(json_schemas()[name])
        for value in set(values) - {known for other, all_ in _values(schema) if other == field for known in all_}
        if any(other == field for other, _ in _values(schema))
    }
    assert new == REFUSED
    for name, field, value in REFUSED:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(fixture(name) | {field: value}, V0_1[name])


def _objects(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "", schema.get("properties", {})
    for name, part in schema.get("$defs", {}).items():
        yield name, part.get("properties", {})


def _added_fields(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    known = dict(_objects(old))
    for name, fields in _objects(new):
        yield from set(fields) - set(known.get(name, {}))


def _names(fields: Any) -> Iterator[str]:
    for name, value in fields.items():
        yield name
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from _names(part)


def _values(schema: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for _, fields in _objects(schema):
        for name, field in fields.items():
            if "enum" in field:
                yield name, field["enum"]
    for name, part in schema.get("$defs", {}).items():
        if "enum" in part:
            yield name, part["enum"]
