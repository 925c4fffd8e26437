"""The form of a fine-tune request: its fields, what a browser sends, and the request that this is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel

from foldtune.knobs import DatasetKnobs, TrainingKnobs, WeightKnobs

Fields = Mapping[str, Sequence[str]]
# A longer number is above every bound.
_MAX_DIGITS = 20
# Of the base model, where it is another than the installation's.
_BASE_MODEL = ("uri", "revision", "weights_sha256")


@dataclass(frozen=True)
class Knob:
    """A number of the form, with its bounds; ``kind`` is how its text is read."""

    name: str
    kind: type[int] | type[float]
    default: Any
    minimum: float
    maximum: float
    # Instead of a number.
    words: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The default, as a browser has it."""
        return "" if self.default is None else _written(self.default)

    def is_default(self, text: str) -> bool:
        """Whether a field with this text is as if it had not been touched."""
        return text in {"", self.text} or _number(text, self) == self.default

    def of(self, body: Mapping[str, Any]) -> Any:
        """Its value in a request."""
        section, _, field = self.name.partition(".")
        return (body.get(section) or {}).get(field, self.default)

    @property
    def step(self) -> str:
        """What a browser takes between two values."""
        return "1" if self.kind is int else "any"


_SECTIONS: dict[str, type[BaseModel]] = {"dataset": DatasetKnobs, "training": TrainingKnobs, "weights": WeightKnobs}


def _knob(name: str) -> Knob:
    section, _, field = name.partition(".")
    schema = _SECTIONS[section].model_json_schema()["properties"][field]
    forms = schema.get("anyOf", [schema])
    [number] = [form for form in forms if form.get("type") in {"integer", "number"}]
    words = tuple(str(form["const"]) for form in forms if "const" in form)
    kind = int if number["type"] == "integer" else float
    return Knob(name, kind, schema["default"], number["minimum"], number["maximum"], words)


# As the page shows them, by group.
GROUPS: dict[str, tuple[Knob, ...]] = {
    "dataset": tuple(map(_knob, ("dataset.easy_negatives", "dataset.hard_negatives", "dataset.exclusion_threshold"))),
    "training": tuple(map(_knob, ("training.batch_size", "training.trainable_layers", "training.epochs"))),
    "weights": tuple(map(_knob, ("weights.temperature", "weights.focus", "weights.minimum"))),
    # Those that the form shows when they are asked for.
    "further": tuple(map(_knob, ("training.max_tokens", "training.older_share"))),
}
KNOBS = {knob.name: knob for group in GROUPS.values() for knob in group}
STARTS = ("base", "incumbent")


def request_of(fields: Fields) -> dict[str, Any]:
    """The body for ``POST /requests`` and ``POST /previews``.

    What is not a number stays a text, for the API to say so beside its field.
    """
    body: dict[str, Any] = {"model": _last(fields, "model"), "data": {}}
    if request_id := _last(fields, "request_id"):
        body["request_id"] = request_id
    for name in ("start", "end"):
        if day := _last(fields, f"data.{name}"):
            body["data"][name] = f"{day}T00:00:00Z" if len(day) == len("2026-01-31") else day
    for name in ("folders", "agents"):
        if chosen := [value for value in fields.get(f"data.{name}", ()) if value]:
            body["data"][name] = chosen
    for knob in KNOBS.values():
        if text := _last(fields, knob.name):
            section, _, field = knob.name.partition(".")
            body.setdefault(section, {})[field] = _number(text, knob)
    if (start := _last(fields, "training.start")) and start != STARTS[0]:
        body.setdefault("training", {})["start"] = start
    for name in _BASE_MODEL:
        if text := _last(fields, f"base_model.{name}"):
            body.setdefault("base_model", {})[name] = text
    if seed := _last(fields, "seed"):
        body["seed"] = int(seed) if seed.isascii() and seed.isdigit() and len(seed) < _MAX_DIGITS else seed
    return body


def fields_of(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fields that make a request again; what is at its default is left out."""
    found = [("model", str(request["model"]))]
    data = request.get("data") or {}
    for name in ("start", "end"):
        if data.get(name):
            found.append((f"data.{name}", str(data[name]).removesuffix("T00:00:00Z")))
    for name in ("folders", "agents"):
        found += [(f"data.{name}", value) for value in data.get(name) or ()]
    found += [(knob.name, _written(value)) for knob, value in changed_knobs(request)]
    if (start := (request.get("training") or {}).get("start", STARTS[0])) != STARTS[0]:
        found.append(("training.start", start))
    base_model = request.get("base_model") or {}
    found += [(f"base_model.{name}", base_model[name]) for name in _BASE_MODEL if base_model.get(name)]
    if request.get("seed"):
        found.append(("seed", str(request["seed"])))
    return found


def changed_knobs(request: Mapping[str, Any]) -> list[tuple[Knob, Any]]:
    """The knobs that a request has at another value than the default, with that value."""
    return [(knob, value) for knob in KNOBS.values() if (value := knob.of(request)) != knob.default]


def address(fields: Sequence[tuple[str, str]]) -> str:
    """The page with a form that is filled in."""
    return f"/console/fine-tune?{urlencode(fields)}"


def _written(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _last(fields: Fields, name: str) -> str:
    values = fields.get(name) or ("",)
    return values[-1].strip()


def _number(text: str, knob: Knob) -> Any:
    if text in knob.words:
        return text
    try:
        number = knob.kind(text)
    except ValueError:
        return text
    # JSON has no others, and a longer one is above every bound.
    return number if abs(number) < 10**_MAX_DIGITS else text
