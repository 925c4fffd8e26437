"""The page and the JSON Schemas of the events, made from their models."""

import json
from pathlib import Path
from typing import Any

from foldtune.events import EVENTS, Event, json_schemas
from foldtune.topics import Topic

# Which events a topic carries, and by what they are keyed.
CARRIED: dict[Topic, tuple[str, str]] = {
    Topic.CHAT_LOGS: ("chat_log, chat_log_batch", "folder_id"),
    Topic.DOCUMENTS: ("document_upserted, document_deleted", "folder_id"),
    Topic.FEEDBACK: ("feedback", "folder_id"),
    Topic.ERASURES: ("erasure_requested", "none, sent to every partition"),
    Topic.SNAPSHOT_COMMANDS: ("snapshot_command, training_finished", "none, sent to the partition it is for"),
    Topic.FINE_TUNE_REQUESTS: ("fine_tune_requested, fine_tune_cancelled", "model"),
    Topic.SNAPSHOT_PARTS: ("snapshot_part", "model"),
    Topic.TRAINING_PROGRESS: ("training_progressed", "model"),
    Topic.MODEL_READY: ("model_ready", "model"),
    Topic.TRAINING_REPORTS: ("fine_tune_status, from launcher and trainer", "request_id, partitioned by model"),
    Topic.FINE_TUNE_STATUS: ("fine_tune_status", "request_id, partitioned by model"),
    Topic.TRAINING_JOBS: ("training_job", "request_id, partitioned by model"),
    Topic.DEAD_LETTERS: (
        "the original bytes, with headers foldtune-error, -topic, -partition, -offset; without a value, and with"
        " foldtune-letter: that this letter was replayed, and where it landed",
        "the original's",
    ),
}

# An event within an event is described in its own section.
ANCHORS = {event.__name__: str(event.model_fields["type"].default) for event in EVENTS}

HEAD = """# Events

JSON on Kafka: UTF-8, times as RFC 3339 in UTC. A reader ignores fields that it does not know, and takes no value of
another type than the field's. This page and `schemas/` are written by `foldtune schemas docs`.

| topic | events | key |
|---|---|---|
"""

PARTS = """
# Parts of events
"""


def write(folder: Path) -> list[Path]:
    """Write ``events.md`` and ``schemas/TYPE.json`` below ``folder``, and return their paths."""
    written = {folder / "events.md": page()}
    for name, schema in json_schemas().items():
        written[folder / "schemas" / f"{name}.json"] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(written)


def page() -> str:
    """The whole page, as Markdown."""
    topics = "".join(f"| `{topic.label}` | {events} | {key} |\n" for topic, (events, key) in CARRIED.items())
    events = "".join(_section(event) for event in EVENTS)
    return HEAD + topics + events + PARTS + "".join(_part(name, part) for name, part in sorted(_parts().items()))


def _section(event: type[Event]) -> str:
    schema = event.model_json_schema()
    name = event.model_fields["type"].default
    return f"\n## {name}\n\n{_text(schema)} Schema: [`{name}`](schemas/{name}.json).\n\n{_table(schema)}"


def _parts() -> dict[str, dict[str, Any]]:
    """What events are made of and is no event itself, by its name."""
    parts: dict[str, dict[str, Any]] = {}
    for event in EVENTS:
        parts |= event.model_json_schema().get("$defs", {})
    return {name: part for name, part in parts.items() if name not in ANCHORS}


def _part(name: str, part: dict[str, Any]) -> str:
    content = f"One of {_type(part)}.\n" if "enum" in part else _table(part)
    return f"\n## {name}\n\n{_text(part)}\n\n{content}"


def _text(schema: dict[str, Any]) -> str:
    return " ".join(str(schema.get("description", "")).replace("``", "`").split())


def _table(schema: dict[str, Any]) -> str:
    rows = "".join(_row(field, part, schema) for field, part in schema["properties"].items())
    return f"| field | type | default | |\n|---|---|---|---|\n{rows}"


def _row(field: str, part: dict[str, Any], schema: dict[str, Any]) -> str:
    needed = field in schema.get("required", ())
    default = "needed" if needed else f"`{json.dumps(part['default'])}`" if part.get("default") is not None else ""
    text = _text(part).replace("|", "\\|")
    return f"| `{field}` | {_type(part)} | {default} | {text} |\n"


def _type(part: dict[str, Any]) -> str:
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[1]
        return f"[`{name}`](#{ANCHORS.get(name, name.lower())})"
    if "const" in part or "enum" in part:
        return " \\| ".join(f"`{json.dumps(value)}`" for value in part.get("enum", [part.get("const")]))
    if "anyOf" in part:
        return " or ".join(_type(arm) for arm in part["anyOf"] if arm.get("type") != "null")
    if part.get("type") == "array":
        return f"list of {_type(part['items'])}" if "items" in part else "list"
    if part.get("type") == "object" and "additionalProperties" in part:
        return "map"
    return str(part.get("format") or part.get("type", "any")) + _limits(part)


def _limits(part: dict[str, Any]) -> str:
    limits = [
        f"{sign} {part[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if key in part
    ]
    if "maxLength" in part:
        limits.append(f"at most {part['maxLength']} characters")
    return f" ({', '.join(limits)})" if limits else ""
