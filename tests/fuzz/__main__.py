"""``make fuzz``: the last line is the report as JSON; the exit status is 0 if nothing went wrong."""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tests.fuzz.run import run


def main(
    *,
    seed: Annotated[int, typer.Option(help="Determines the events.")] = 0,
    events: Annotated[int, typer.Option(help="Number of events.")] = 10_000,
    minutes: Annotated[float, typer.Option(help="No event is sent after so many.")] = 30,
) -> None:
    """Send random events to a real worker, launcher and HTTP API, and account for each of them."""
    folder = Path(tempfile.mkdtemp(prefix="foldtune-fuzz-"))
    sys.stderr.write(f"logs are in {folder}\n")
    report = run(seed, events, minutes * 60, folder)
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    raise typer.Exit(int(bool(report.wrong)))


if __name__ == "__main__":
    typer.run(main)
