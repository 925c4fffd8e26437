"""The form of a policy: its fields, what a browser sends, and the policy that this is."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from console.rendering import words
from foldtune.durations import spoken
from foldtune.policy import MAX_RULES, QualityFall, Rule
from foldtune.reasons import field_of, invalid_fields

Fields = Mapping[str, Sequence[str]]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_INDEX = re.compile(r"rules\.(\d{1,2})\.")
_COUNTED = ("new_examples", "min_examples", "monthly_trainings")
_SHARES = ("changed_documents", "monthly_dollars")
_QUALITY = ("window", "baseline", "min_fall", "chance")
_KNOBS = ("dataset", "training", "weights")
_RULES = TypeAdapter(tuple[Rule, ...])
# Those of a rule; an error of another place is told above its rule.
_FIELDS = (
    *("name", "data.folders", *_COUNTED, *_SHARES, "calendar.days", "calendar.at", "time_zone", "cooldown"),
    *(f"quality.{name}" for name in _QUALITY),
    *("quiet_hours.start", "quiet_hours.end", "knobs"),
)


def count_of(fields: Fields) -> int:
    """How many rules the form has."""
    return min(1 + max((int(found[1]) for found in map(_INDEX.match, fields) if found), default=-1), MAX_RULES)


def rules_of(fields: Fields) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rules for the API, and what is wrong with them already.

    What is not a number stays a text, for the API to say so beside its field.
    """
    errors: dict[str, str] = {}
    return [_rule(fields, f"rules.{number}.", errors) for number in range(count_of(fields))], errors


def check(rules: Sequence[dict[str, Any]]) -> tuple[tuple[Rule, ...] | None, dict[str, str]]:
    """The rules as they count, or what is wrong with them."""
    try:
        return _RULES.validate_python(rules), {}
    except ValidationError as error:
        return None, {f"rules.{field_of(location)}": reason for location, reason, _ in invalid_fields(error)}


def placed(errors: Mapping[str, str]) -> dict[str, str]:
    """The errors by the field of the form that each stands beside; a rule's others at ``rules.N``."""
    found: dict[str, str] = {}
    for name, reason in errors.items():
        place = _place(name)
        # Beside its own field, it need not be named.
        is_named = name == place or (place.endswith(_FIELDS) and not place.endswith(".knobs"))
        line = reason if is_named else f"{_INDEX.sub('', name)}: {reason}"
        found[place] = f"{found[place]}; {line}" if place in found else line
    return found


def fields_of(rules: Sequence[Rule]) -> dict[str, list[str]]:
    """The fields that make rules again."""
    return {name: values for number, rule in enumerate(rules) for name, values in _written(rule, f"rules.{number}.")}


def changed(fields: Fields, action: str) -> dict[str, list[str]]:
    """The form with a rule more or less, or with one before the other: ``add``, ``remove-1`` or ``up-1``."""
    word, _, number = action.partition("-")
    order = list(range(count_of(fields)))
    place = int(number) if number.isdecimal() else -1
    if word == "remove" and place in order:
        order.remove(place)
    elif word == "up" and place in order[1:]:
        order[place - 1], order[place] = order[place], order[place - 1]
    found = {name: list(values) for name, values in fields.items() if not _INDEX.match(name)}
    for new, old in enumerate(order):
        for name, values in fields.items():
            if name.startswith(f"rules.{old}."):
                found[f"rules.{new}.{name.removeprefix(f'rules.{old}.')}"] = list(values)
    if word == "add" and len(order) < MAX_RULES:
        taken = {"".join(found.get(f"rules.{number}.name", ())) for number in range(len(order))}
        name = next(name for number in range(MAX_RULES + 1) if (name := f"rule-{number + 1}") not in taken)
        found |= dict(_written(Rule(name=name), f"rules.{len(order)}."))
    return found


def _rule(fields: Fields, prefix: str, errors: dict[str, str]) -> dict[str, Any]:
    def text(name: str) -> str:
        return (fields.get(prefix + name) or ("",))[-1].strip()

    rule: dict[str, Any] = {name: value for name in ("name", "time_zone", "cooldown") if (value := text(name))}
    rule |= {name: _number(value, int) for name in _COUNTED if (value := text(name))}
    rule |= {name: _number(value, float) for name in _SHARES if (value := text(name))}
    if folders := [_read_line(line) for line in text("data.folders").splitlines() if line.strip()]:
        rule["data"] = {"folders": folders}
    if days := [day for day in fields.get(f"{prefix}calendar.days", ()) if day]:
        rule["calendar"] = {"days": days, **({"at": at} if (at := text("calendar.at")) else {})}
    if text("quality"):
        read = {"min_fall": lambda value: _number(value, float), "chance": lambda value: _number(value, float)}
        rule["quality"] = {name: read.get(name, str)(value) for name in _QUALITY if (value := text(f"quality.{name}"))}
    if quiet := {name: value for name in ("start", "end") if (value := text(f"quiet_hours.{name}"))}:
        rule["quiet_hours"] = quiet
    if knobs := text("knobs"):
        try:
            found = json.loads(knobs)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and found.keys() <= set(_KNOBS):
            rule |= found
        else:
            errors[f"{prefix}knobs"] = str(words()["policy_form"]["knobs_error"])
    return rule


def _written(rule: Rule, prefix: str) -> Iterator[tuple[str, list[str]]]:
    values: dict[str, Any] = {
        "name": rule.name,
        "data.folders": "\n".join(map(_line, rule.data.folders or ())),
        **{name: getattr(rule, name) for name in (*_COUNTED, *_SHARES)},
        "time_zone": rule.time_zone,
        "cooldown": _duration(rule.cooldown),
        "calendar.at": rule.calendar.at if rule.calendar else "03:00",
        "quality": "on" if rule.quality else "",
    }
    fall = rule.quality or QualityFall()
    values |= {"quality.window": _duration(fall.window), "quality.baseline": _duration(fall.baseline)}
    values |= {"quality.min_fall": fall.min_fall, "quality.chance": fall.chance}
    if rule.quiet_hours:
        values |= {"quiet_hours.start": rule.quiet_hours.start, "quiet_hours.end": rule.quiet_hours.end}
    knobs = rule.model_dump(include=set(_KNOBS), exclude_defaults=True)
    values["knobs"] = json.dumps(knobs, indent=1) if knobs else ""
    for name, value in values.items():
        yield prefix + name, ["" if value is None else f"{value:.15g}" if isinstance(value, float) else str(value)]
    yield f"{prefix}calendar.days", list(rule.calendar.days if rule.calendar else ())


def _line(folder: str) -> str:
    """A folder's id as a line; one that a line alone would not be is written as JSON."""
    plain = folder == folder.strip() and len(folder.splitlines()) == 1 and not folder.startswith('"')
    return folder if plain else json.dumps(folder)


def _read_line(line: str) -> str:
    text = line.strip()
    if text.startswith('"'):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(found, str):
            return found
    return text


def _duration(duration: timedelta) -> str:
    text = spoken(duration)
    # In two units at most, of which the rest would be lost.
    return text if Rule.model_validate({"cooldown": text}).cooldown == duration else f"{duration.total_seconds():g}s"


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        number = kind(text)
    except ValueError:
        return text
    # JSON has no others.
    return number if abs(number) < 1e15 else text


def _place(name: str) -> str:
    found = _INDEX.match(name)
    if found is None:
        parts = name.split(".")
        return ".".join(parts[:2]) if parts[0] == "rules" and len(parts) == 2 else parts[0]
    rest = name[found.end() :]
    if rest.partition(".")[0] in _KNOBS:
        rest = "knobs"
    elif rest == "quiet_hours" or rest.startswith("quiet_hours."):
        rest = rest if rest in _FIELDS else "quiet_hours.start"
    field = next((field for field in _FIELDS if rest == field or rest.startswith(f"{field}.")), None)
    return f"{found[0]}{field}" if field else found[0].removesuffix(".")
