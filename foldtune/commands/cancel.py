"""``foldtune cancel``."""

from typing import Annotated

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
def cancel(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST")],
    model: Annotated[str | None, typer.Option(help="The request's model; default: looked up.")] = None,
) -> None:
    """Cancel a request; 'foldtune status REQUEST' shows when it has ended."""
    with FoldtuneClient(load_settings()) as client:
        newest = client.requests().values()
        known = [each for each in newest if each.request_id == request_id and model in {None, each.model}]
        running = [status for status in known if not status.state.terminal]
        if known and not running:
            typer.echo(f"{request_id} has ended already: {known[0].state}")
            return
        if len(running) > 1:
            models = ", ".join(sorted(status.model for status in running))
            raise UserError(f"request {request_id!r} is under way for the models {models}; pass --model")
        model = model or (running[0].model if running else None)
        if model is None:
            raise UserError(f"request {request_id!r} not found; to cancel it anyway, pass --model")
        client.cancel(request_id, model, requested_by="command line")
    typer.echo(f"cancellation of {request_id} requested")
