"""``foldtune status``."""

from typing import Annotated

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.commands.output import (
    AsJson,
    collapse_progress,
    details,
    print_event,
    print_table,
    state_of,
    warning_lines,
)
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
def status(
    request_id: Annotated[str | None, typer.Argument(metavar="[REQUEST]", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model: several may use one id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest status of every request, or all retained statuses of one."""
    with FoldtuneClient(load_settings()) as client:
        if request_id is None:
            newest = client.requests().values()
            statuses = sorted((each for each in newest if model in {None, each.model}), key=lambda status: status.at)
        else:
            statuses = list(client.statuses(request_id, model=model, follow=False))
            if not statuses:
                raise UserError(f"request {request_id!r} not found")
    if as_json:
        for each in statuses:
            print_event(each)
        return
    rows = [
        (each.request_id, each.model, state_of(each), f"{each.at:%Y-%m-%d %H:%M:%S}", details(each))
        for each in collapse_progress(statuses)
    ]
    print_table(("request", "model", "state", "at (UTC)", "details"), rows)
    for line in dict.fromkeys(f"{each.request_id}: {warning}" for each in statuses for warning in warning_lines(each)):
        typer.echo(line)
