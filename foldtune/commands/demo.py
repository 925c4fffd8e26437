"""``foldtune demo``."""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def demo(keep: Annotated[bool, typer.Option("--keep", help="Leave the servers and the data there.")] = False) -> None:
    """Show the whole loop on this machine, from chat logs to a better model."""
    from foldtune.demo.commands import run  # noqa: PLC0415  needs the extra

    run(keep)
