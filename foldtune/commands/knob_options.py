"""The knobs of a request as command line options, made from their models, which describe and bound each."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from foldtune.knobs import DataSelection, DatasetKnobs, Knobs, TrainingKnobs, WeightKnobs

SECTIONS: dict[str, type[Knobs]] = {
    "data": DataSelection,
    "dataset": DatasetKnobs,
    "training": TrainingKnobs,
    "weights": WeightKnobs,
}
# An option that is given several times names one thing each time.
SINGULAR = {"folders": "folder", "agents": "agent"}


@dataclass(frozen=True)
class Knob:
    """One knob, as its JSON Schema tells of it."""

    section: str
    name: str
    schema: dict[str, Any]

    @property
    def option(self) -> inspect.Parameter:
        """The knob as a parameter of a typer command."""
        kind = self._kind
        flag = SINGULAR.get(self.name, self.name).replace("_", "-")
        bounds: dict[str, Any] = {}
        if kind in {int, float}:
            bounds = {"min": self.schema.get("minimum"), "max": self.schema.get("maximum")}
        info = typer.Option(f"--{flag}", help=self._help, rich_help_panel=f"Knobs: {self.section}", **bounds)
        # The default is the model's to apply: what no option names stays out of the event.
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
        )

    def parsed(self, value: Any) -> Any:
        """An option's value as JSON has it; what is not of the knob's type is left for the model to refuse."""
        if isinstance(value, str) and "integer" in self._types and value.isdecimal():
            return int(value)
        if isinstance(value, str) and self._is_moment:
            return _in_utc(value)
        return value

    @property
    def _shapes(self) -> list[dict[str, Any]]:
        return list(self.schema.get("anyOf", [self.schema]))

    @property
    def _types(self) -> set[str | None]:
        return {shape.get("type") for shape in self._shapes} - {"null"}

    @property
    def _is_moment(self) -> bool:
        return any(shape.get("format") == "date-time" for shape in self._shapes)

    @property
    def _kind(self) -> Any:
        """The type that the command line checks; a knob of several types is checked by its model alone."""
        if self._types == {"array"}:
            return list[str]
        return (
            {"integer": int, "number": float}.get(str(next(iter(self._types))), str) if len(self._types) == 1 else str
        )

    @property
    def _help(self) -> str:
        notes = []
        if self._kind == list[str]:
            notes.append("may be repeated")
        if self._is_moment:
            notes.append("ISO 8601, UTC unless it says otherwise")
        if self.schema.get("default") is not None:
            notes.append(f"default: {self.schema['default']}")
        return f"{self.schema['description']} ({'; '.join(notes)})" if notes else str(self.schema["description"])


KNOBS = tuple(
    Knob(section, name, schema)
    for section, model in SECTIONS.items()
    for name, schema in model.model_json_schema()["properties"].items()
)


def with_knobs(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command``, whose last parameter is ``**knobs``, one option for each knob."""
    own = list(inspect.signature(command).parameters.values())[:-1]
    # Read by typer in place of the one that Python sees.
    command.__signature__ = inspect.Signature([*own, *(knob.option for knob in KNOBS)])  # type: ignore[attr-defined]
    return command


def knob_sections(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The knobs that were given, as the sections of a request."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for knob in KNOBS:
        if (value := values.get(knob.name)) not in (None, []):
            sections[knob.section][knob.name] = knob.parsed(value)
    return sections


def _in_utc(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
