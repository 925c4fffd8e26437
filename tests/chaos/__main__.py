"""``make chaos SEED=… MINUTES=…``: one JSON line last; the exit code says whether all that must be zero is."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.chaos.run import Plan, run


def main(
    seed: Annotated[int, typer.Option(help="The same seed injects the same faults in the same order.")] = 0,
    minutes: Annotated[float, typer.Option(help="How long faults are injected.")] = 10.0,
    fault_every: Annotated[float, typer.Option(help="Seconds between faults, on average.")] = 2.5,
    without: Annotated[str | None, typer.Option(help="A correction that the workers do not have.")] = None,
) -> None:
    """Hurt the system in every way, then compare it with a model of what it should be."""
    folder = Path(tempfile.mkdtemp(prefix="foldtune-chaos-"))
    report = run(Plan(seed=seed, seconds=minutes * 60, fault_every=fault_every, without=without), folder)
    sys.stderr.write(f"logs are in {folder}\n")
    sys.stdout.write(report.as_line() + "\n")
    raise typer.Exit(int(bool(report.broken)))


if __name__ == "__main__":
    typer.run(main)
