"""``foldtune deploy``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.client.deployment import fetch_model
from foldtune.commands.errors import UserError
from foldtune.errors import ModelFileError
from foldtune.events import ModelReady
from foldtune.object_store import S3ObjectStore
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
def deploy(
    target: Annotated[
        Path,
        typer.Argument(help="Versions go to MODEL-DIGEST/VERSION (a digest of the name), with a link 'current'."),
    ],
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Download the newest versions, then exit.")] = False,
) -> None:
    """Download and verify the newest version of every model, then each new one; prints their folders."""
    settings = load_settings()
    store = S3ObjectStore(settings.s3)
    with FoldtuneClient(settings) as client:
        newest = client.models()
        if once and (unknown := sorted(set(model or ()) - set(newest))):
            raise UserError(f"unknown models: {', '.join(unknown)}")
        for ready in newest.values() if once else _newest_and_later(client, newest):
            if not model or ready.model in model:
                _deploy(ready, store, target, strict=once)


def _newest_and_later(client: FoldtuneClient, newest: dict[str, ModelReady]) -> Iterator[ModelReady]:
    """The newest version of each model, then later ones; ``subscribe`` starts at the first event."""
    yield from newest.values()
    seen = {name: ready.version for name, ready in newest.items()}
    for ready in client.subscribe():
        if ready.version > seen.get(ready.model, ""):
            seen[ready.model] = ready.version
            yield ready


def _deploy(ready: ModelReady, store: S3ObjectStore, target: Path, *, strict: bool) -> None:
    try:
        folder = fetch_model(ready, store, target)
    except (ModelFileError, ValueError) as error:
        if strict:
            raise UserError(f"{ready.model} {ready.version}: {error}") from error
        # The next version may be valid; until then the current one stays deployed.
        typer.echo(f"foldtune: {ready.model} {ready.version}: {error}", err=True)
        return
    typer.echo(str(folder))
