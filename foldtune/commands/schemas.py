"""``foldtune schemas``."""

from pathlib import Path
from typing import Annotated

import typer

from foldtune.commands.event_docs import write

app = typer.Typer(add_completion=False)


@app.command()
def schemas(folder: Annotated[Path, typer.Argument(help="Where events.md and schemas/ are written.")]) -> None:
    """Write the page of the events and their JSON Schemas, made from the models."""
    for path in write(folder):
        typer.echo(str(path))
