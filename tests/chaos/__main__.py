"""``make chaos SEED=… MINUTES=…``: the last line is the report as JSON; the exit status is 0 if all counters are 0."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tests.chaos.run import Plan, Report, run
from tests.chaos.sabotage import SABOTAGES


def main(
    *,
    seed: Annotated[int, typer.Option(help="Determines the kinds of faults and their order.")] = 0,
    minutes: Annotated[float, typer.Option(help="Duration of the fault injection.")] = 10.0,
    fault_every: Annotated[float, typer.Option(help="Seconds between quick faults, on average.")] = 2.0,
    only: Annotated[list[str] | None, typer.Option(help="Kinds of faults to inject; default: all.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Corrections to disable in the workers.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds until every request must have a final status.")] = 240.0,
    sabotage: Annotated[bool, typer.Option(help="One run for each counter, with a correction disabled.")] = False,
) -> None:
    """Inject faults, then compare the system's state with a reference model."""
    kinds = tuple(only) if only else None
    plan = Plan(seed, minutes * 60, fault_every, kinds=kinds, without=tuple(without or ()), patience=patience)
    if sabotage:
        raise typer.Exit(_sabotage(plan))
    report = _run(plan)
    sys.stdout.write(report.to_json() + "\n")
    raise typer.Exit(int(bool(report.violations)))


def _run(plan: Plan) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="foldtune-chaos-"))
    sys.stderr.write(f"logs are in {folder}\n")
    report = run(plan, folder)
    if report.violations:
        sys.stderr.write(f"{report.violations}: {(folder / 'differences.json').read_text()}\n")
    return report


def _sabotage(plan: Plan) -> int:
    """Run each sabotage with the plan's seed and duration; 0 if every counter rises, and without sabotage none."""
    kinds = tuple(sorted({kind for sabotage in SABOTAGES for kind in sabotage.kinds}))
    figures = {"none": _run(replace(plan, kinds=kinds)).violations}
    seen = not figures["none"]
    for without, kinds, counter in SABOTAGES:
        figures[without] = _run(replace(plan, kinds=kinds, without=(without,))).violations
        seen &= counter in figures[without]
        sys.stderr.write(f"{counter} {figures[without].get(counter, 0)} without {without}, under {', '.join(kinds)}\n")
    sys.stdout.write(json.dumps(figures) + "\n")
    return int(not seen)


if __name__ == "__main__":
    typer.run(main)
