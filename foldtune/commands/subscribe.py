"""``foldtune subscribe``."""

from typing import Annotated

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.output import print_event
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
def subscribe(
    group: Annotated[
        str | None, typer.Option(help="Consumer group to resume; default: start at the first event.")
    ] = None,
) -> None:
    """Print model-ready events as JSON Lines until Ctrl-C.

    Those of models in approval.models once their version is approved; none of a version that was rejected.
    """
    with FoldtuneClient(load_settings()) as client:
        for ready in client.subscribe(group):
            print_event(ready)
