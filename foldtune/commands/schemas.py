"""``foldtune schemas``."""

from pathlib import Path
from typing import Annotated

import typer

from foldtune.commands.event_docs import write

app = typer.Typer(add_completion=False)


@app.command()
def schemas(folder: Annotated[Path, typer.Argument(help="Folder of events.md and schemas/.")]) -> None:
    """Write the reference of the events and their JSON Schemas."""
    for path in write(folder):
        typer.echo(str(path))
