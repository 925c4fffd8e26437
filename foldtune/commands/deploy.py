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
        typer.Argument(help="Gets MODEL-DIGEST/VERSION, the digest being one of the name, and 'current' beside it."),
    ],
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Fetch the newest versions, and end.")] = False,
) -> None:
    """Fetch the newest version of every model and each one to come, checked by its digests; prints their folders."""
    settings = load_settings()
    store = S3ObjectStore(settings.s3)
    with FoldtuneClient(settings) as client:
        newest = client.models()
        if once and (unknown := sorted(set(model or ()) - set(newest))):
            raise UserError(f"not announced: {', '.join(unknown)}")
        for ready in newest.values() if once else _newer(client, newest):
            if not model or ready.model in model:
                _fetch(ready, store, target, strict=once)


def _newer(client: FoldtuneClient, newest: dict[str, ModelReady]) -> Iterator[ModelReady]:
    """The newest of each, and then all later ones; the topic is read from its beginning, and older ones passed over."""
    yield from newest.values()
    seen = {name: ready.version for name, ready in newest.items()}
    for ready in client.subscribe():
        if ready.version > seen.get(ready.model, ""):
            seen[ready.model] = ready.version
            yield ready


def _fetch(ready: ModelReady, store: S3ObjectStore, target: Path, *, strict: bool) -> None:
    try:
        folder = fetch_model(ready, store, target)
    except (ModelFileError, ValueError) as error:
        if strict:
            raise UserError(f"{ready.model} {ready.version}: {error}") from error
        # The next version may be whole, and what serves now goes on serving.
        typer.echo(f"foldtune: {ready.model} {ready.version}: {error}", err=True)
        return
    typer.echo(str(folder))
