"""Options of ``foldtune request`` for the knobs, generated from the models of ``foldtune.knobs``."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from foldtune.commands.timestamps import TIMESTAMP_HELP, aware
from foldtune.knobs import DataSelection, DatasetKnobs, Knobs, TrainingKnobs, WeightKnobs

SECTIONS: dict[str, type[Knobs]] = {
    "data": DataSelection,
    "dataset": DatasetKnobs,
    "training": TrainingKnobs,
    "weights": WeightKnobs,
}
# A repeatable option names one item each time.
SINGULAR = {"folders": "folder", "agents": "agent"}
# Where the name is that of a knob in another section.
RENAMED = {("training", "start"): "start_from"}


@dataclass(frozen=True)
class Knob:
    """One knob: its section, its name and its JSON Schema."""

    section: str
    name: str
    schema: dict[str, Any]

    @property
    def parameter(self) -> str:
        """The name of the command's parameter."""
        return RENAMED.get((self.section, self.name), self.name)

    @property
    def option(self) -> inspect.Parameter:
        """The parameter of a typer command."""
        kind = self._kind
        flag = SINGULAR.get(self.name, self.parameter).replace("_", "-")
        bounds: dict[str, Any] = {}
        if kind in {int, float}:
            bounds = {"min": self.schema.get("minimum"), "max": self.schema.get("maximum")}
        info = typer.Option(f"--{flag}", help=self._help, rich_help_panel=f"Knobs: {self.section}", **bounds)
        # Without a default: options that are not given stay out of the event, and the model applies its defaults.
        return inspect.Parameter(
            self.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
        )

    def parsed(self, value: Any) -> Any:
        """The JSON value of an option; a wrong type is left to the model's validation."""
        if isinstance(value, str) and "integer" in self._types and value.isdecimal():
            return int(value)
        if isinstance(value, str) and self._is_timestamp:
            try:
                return aware(value).isoformat()
            except ValueError:
                return value
        return value

    @property
    def _variants(self) -> list[dict[str, Any]]:
        return list(self.schema.get("anyOf", [self.schema]))

    @property
    def _types(self) -> set[str | None]:
        return {variant.get("type") for variant in self._variants} - {"null"}

    @property
    def _is_timestamp(self) -> bool:
        return any(variant.get("format") == "date-time" for variant in self._variants)

    @property
    def _kind(self) -> Any:
        """The type that typer checks; a knob of several types is checked by its model only."""
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
        if self._is_timestamp:
            notes.append(TIMESTAMP_HELP)
        if self.schema.get("default") is not None:
            notes.append(f"default: {self.schema['default']}")
        return f"{self.schema['description']} ({'; '.join(notes)})" if notes else str(self.schema["description"])


KNOBS = tuple(
    Knob(section, name, schema)
    for section, model in SECTIONS.items()
    for name, schema in model.model_json_schema()["properties"].items()
)


def with_knobs(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter ``**knobs``, which must be the last, by one option per knob."""
    own = list(inspect.signature(command).parameters.values())[:-1]
    # Typer reads this signature.
    command.__signature__ = inspect.Signature([*own, *(knob.option for knob in KNOBS)])  # type: ignore[attr-defined]
    return command


def knob_sections(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The given knobs, by section of the request."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for knob in KNOBS:
        if (value := values.get(knob.parameter)) not in (None, []):
            sections[knob.section][knob.name] = knob.parsed(value)
    return sections
