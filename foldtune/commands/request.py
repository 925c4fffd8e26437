"""``foldtune request``."""

import json
import secrets
from datetime import timedelta
from typing import Annotated, Any

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.knob_options import knob_sections, with_knobs
from foldtune.commands.output import AsJson, details, print_event, state_of, warning_lines
from foldtune.events import FineTuneRequested, FineTuneStatus, State, now
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
@with_knobs
def request(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    *,
    base_model: Annotated[
        str | None,
        typer.Option(help="hf://ORG/NAME, file:///FOLDER or s3://BUCKET/PREFIX; default: the worker's."),
    ] = None,
    base_revision: Annotated[str | None, typer.Option(help="Revision of a base model on the Hugging Face Hub.")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Idempotency key: the same id is one request; default: generated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same data and seed give the same model.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit status 1 unless completed.")] = False,
    timeout: Annotated[int, typer.Option(min=1, help="Maximum seconds of --wait.")] = 24 * 3600,
    as_json: AsJson = False,
    **knobs: Any,
) -> None:
    """Request a fine-tuned model. Knobs that are not given have their defaults."""
    content = {
        # A generated id contains the model's name, which must be validated first.
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
        generated = f"cli-{model}-{now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        event = event.model_copy(update={"request_id": generated})
    with FoldtuneClient(load_settings()) as client:
        client.request_fine_tune(event)
        if not wait:
            if as_json:
                print_event(event)
            else:
                typer.echo(event.request_id)
            return
        last = _print_statuses(client, event, timedelta(seconds=timeout), as_json=as_json)
    if last is None or last.state is not State.COMPLETED:
        raise typer.Exit(1)


def _print_statuses(
    client: FoldtuneClient, request: FineTuneRequested, timeout: timedelta, *, as_json: bool
) -> FineTuneStatus | None:
    """Print each status until the final one; returns the last."""
    last, request_id = None, request.request_id
    printed: set[str] = set()
    for last in client.statuses(request_id, model=request.model, timeout=timeout):
        if as_json:
            print_event(last)
            continue
        prefix = f"{last.at:%H:%M:%S} {request_id}"
        for warning in warning_lines(last):
            if warning not in printed:
                typer.echo(f"{prefix} {warning}")
                printed.add(warning)
        typer.echo(f"{prefix} {state_of(last)} {details(last)}".rstrip())
    if last is None or not last.state.terminal:
        typer.echo(f"foldtune: {request_id} has not ended after {timeout.total_seconds():.0f} s", err=True)
    return last
