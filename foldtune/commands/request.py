"""``foldtune request``."""

import json
import secrets
from datetime import timedelta
from typing import Annotated, Any

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.knob_options import knob_sections, with_knobs
from foldtune.commands.output import AsJson, describe, print_event, warnings_of
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
@with_knobs
def request(
    model: Annotated[str, typer.Argument(help="Name of the model to make a new version of.")],
    *,
    base_model: Annotated[
        str | None, typer.Option(help="hf://ORG/NAME, file:///FOLDER or s3://BUCKET/PREFIX; else the worker's own.")
    ] = None,
    base_revision: Annotated[str | None, typer.Option(help="Revision of a base model on the Hugging Face hub.")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Makes the request once only, however often it is sent; made up without it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same data and seed make the same model.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end; exit code 1 if it fails.")] = False,
    timeout: Annotated[int, typer.Option(min=1, help="With --wait: seconds to wait at most.")] = 24 * 3600,
    as_json: AsJson = False,
    **knobs: Any,
) -> None:
    """Ask for a fine-tuned model. Every knob that is not given has its default."""
    content = {
        # Made from the model's name once that is known to be one.
        "request_id": request_id or "unnamed",
        "model": model,
        "requested_at": now().isoformat(),
        "requested_by": "command line",
        "origin": "person",
        "seed": seed,
        "base_model": {"uri": base_model, "revision": base_revision} if base_model else None,
    }
    event = FineTuneRequested.model_validate_json(json.dumps(content | knob_sections(knobs)))
    if request_id is None:
        made_up = f"{model}-{now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        event = event.model_copy(update={"request_id": made_up})
    with FoldtuneClient(load_settings()) as client:
        client.request_fine_tune(event)
        if not wait:
            if as_json:
                print_event(event)
            else:
                typer.echo(event.request_id)
            return
        last = _follow(client, event.request_id, timedelta(seconds=timeout), as_json=as_json)
    if last is None or last.state is not State.COMPLETED:
        raise typer.Exit(1)


def _follow(client: FoldtuneClient, request_id: str, timeout: timedelta, *, as_json: bool) -> FineTuneStatus | None:
    last = None
    warned: set[str] = set()
    for last in client.statuses(request_id, timeout=timeout):
        if as_json:
            print_event(last)
        else:
            said = f"{last.at:%H:%M:%S} {request_id}"
            for warning in warnings_of(last):
                if warning not in warned:
                    typer.echo(f"{said} {warning}")
                    warned.add(warning)
            typer.echo(f"{said} {last.state} {describe(last)}".rstrip())
    if last is None or not last.state.terminal:
        typer.echo(f"foldtune: {request_id} has not ended after {timeout.total_seconds():.0f} s", err=True)
    return last
