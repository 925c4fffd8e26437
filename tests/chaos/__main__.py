"""``make chaos SEED=… MINUTES=…``: the last line is the report as JSON; the exit status is 0 if all counters are 0."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.chaos.run import Plan, run


def main(
    *,
    seed: Annotated[int, typer.Option(help="Determines the kinds of faults and their order.")] = 0,
    minutes: Annotated[float, typer.Option(help="Duration of the fault injection.")] = 10.0,
    fault_every: Annotated[float, typer.Option(help="Seconds between faults, on average.")] = 2.5,
    only: Annotated[list[str] | None, typer.Option(help="Kinds of faults to inject; default: all.")] = None,
    without: Annotated[str | None, typer.Option(help="A correction to disable in the workers.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds until every request must have a final status.")] = 240.0,
) -> None:
    """Inject faults, then compare the system's state with a reference model."""
    folder = Path(tempfile.mkdtemp(prefix="foldtune-chaos-"))
    kinds = tuple(only) if only else None
    report = run(Plan(seed, minutes * 60, fault_every, kinds=kinds, without=without, patience=patience), folder)
    sys.stderr.write(f"logs are in {folder}\n")
    sys.stdout.write(report.to_json() + "\n")
    raise typer.Exit(int(bool(report.violations)))


if __name__ == "__main__":
    typer.run(main)
