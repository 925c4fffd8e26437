"""``make chaos SEED=… MINUTES=…``: one JSON line last; the exit code says whether all that must be zero is."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.chaos.run import Plan, run


def main(
    *,
    seed: Annotated[int, typer.Option(help="The same seed injects the same faults in the same order.")] = 0,
    minutes: Annotated[float, typer.Option(help="How long faults are injected.")] = 10.0,
    fault_every: Annotated[float, typer.Option(help="Seconds between faults, on average.")] = 2.5,
    only: Annotated[list[str] | None, typer.Option(help="Kinds of faults; all without it.")] = None,
    without: Annotated[str | None, typer.Option(help="A correction that the workers do not have.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds that it may take until every request has ended.")] = 240.0,
) -> None:
    """Hurt the system in every way, then compare it with a model of what it should be."""
    folder = Path(tempfile.mkdtemp(prefix="foldtune-chaos-"))
    kinds = tuple(only) if only else None
    report = run(Plan(seed, minutes * 60, fault_every, kinds=kinds, without=without, patience=patience), folder)
    sys.stderr.write(f"logs are in {folder}\n")
    sys.stdout.write(report.as_line() + "\n")
    raise typer.Exit(int(bool(report.broken)))


if __name__ == "__main__":
    typer.run(main)
