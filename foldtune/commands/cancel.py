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
        status = client.requests().get(request_id)
        if status and status.state.terminal:
            typer.echo(f"{request_id} has ended already: {status.state}")
            return
        model = model or (status.model if status else None)
        if model is None:
            raise UserError(f"request {request_id!r} not found; to cancel it anyway, pass --model")
        client.cancel(request_id, model, requested_by="command line")
    typer.echo(f"cancellation of {request_id} requested")
