"""``foldtune status``."""

from typing import Annotated

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.commands.output import AsJson, describe, newest_progress, print_event, print_table, warnings_of
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
def status(
    request_id: Annotated[str | None, typer.Argument(metavar="[REQUEST]", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest status of every request, or all that is kept of one."""
    with FoldtuneClient(load_settings()) as client:
        if request_id is None:
            found = sorted(client.requests().values(), key=lambda status: status.at)
        else:
            found = list(client.statuses(request_id, follow=False))
            if not found:
                raise UserError(f"no request {request_id!r} is known")
    if as_json:
        for one in found:
            print_event(one)
        return
    shown = newest_progress(found)
    rows = [(one.request_id, one.model, one.state, f"{one.at:%Y-%m-%d %H:%M:%S}", describe(one)) for one in shown]
    print_table(("request", "model", "state", "at (UTC)", "details"), rows)
    for line in dict.fromkeys(f"{one.request_id}: {warning}" for one in found for warning in warnings_of(one)):
        typer.echo(line)
