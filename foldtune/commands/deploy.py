"""``foldtune deploy``."""

import time
from pathlib import Path
from typing import Annotated

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.client.deployment import CURRENT, Deployer, fetch_model, has_been_deployed
from foldtune.commands.errors import UserError
from foldtune.errors import ModelFileError
from foldtune.events import ModelReady
from foldtune.object_keys import key_segment
from foldtune.object_store import S3ObjectStore
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)

# So long --once tries again, and so often everything looks whether something is due.
_ONCE_SECONDS = 30.0
_TICK_SECONDS = 0.25


@app.command()
def deploy(
    target: Annotated[
        Path,
        typer.Argument(help="Versions go to MODEL-DIGEST/VERSION (a digest of the name), with a link 'current'."),
    ],
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Download the newest versions, then exit.")] = False,
    version: Annotated[
        str | None,
        typer.Option(help="Set 'current' to this version of the model, also back to an older one, then exit."),
    ] = None,
) -> None:
    """Download and verify the newest version of every model, then each new one; prints their folders.

    A version that 'current' has been set back from is not deployed again; the next newer one is.
    """
    settings = load_settings()
    store = S3ObjectStore(settings.s3)
    with FoldtuneClient(settings) as client:
        if version is not None:
            typer.echo(str(fetch_model(_announced(client, model or [], version), store, target)))
        elif once:
            _deploy_once(client, store, target, model or [])
        else:
            deployer = Deployer(store, target, _report)
            for ready in client.subscribe(idle=True):
                if ready is not None and (not model or ready.model in model):
                    deployer.offer(ready)
                    continue
                for folder in deployer.deploy_due():
                    typer.echo(str(folder))


def _announced(client: FoldtuneClient, models: list[str], version: str) -> ModelReady:
    if len(models) != 1:
        raise UserError("--version needs one --model")
    for ready in client.announcements():
        if (ready.model, ready.version) == (models[0], version):
            return ready
    raise UserError(f"{models[0]}: no version {version!r} was announced")


def _deploy_once(client: FoldtuneClient, store: S3ObjectStore, target: Path, models: list[str]) -> None:
    newest = client.models()
    if unknown := sorted(set(models) - set(newest)):
        raise UserError(f"unknown models: {', '.join(unknown)}")
    errors: dict[str, Exception] = {}

    def failed(ready: ModelReady, error: Exception) -> None:
        # What is not as announced does not become so.
        if isinstance(error, ModelFileError):
            raise UserError(f"{ready.model} {ready.version}: {error}") from error
        errors[ready.model] = error

    deployer = Deployer(store, target, failed)
    for ready in newest.values():
        if models and ready.model not in models:
            continue
        if has_been_deployed(ready, target):
            typer.echo(str((target / key_segment(ready.model) / CURRENT).resolve()))
        deployer.offer(ready)
    deadline = time.monotonic() + _ONCE_SECONDS
    while not deployer.idle:
        for folder in deployer.deploy_due():
            typer.echo(str(folder))
        if not deployer.idle and time.monotonic() > deadline:
            raise UserError("; ".join(f"{name}: {error}" for name, error in errors.items()))
        time.sleep(_TICK_SECONDS)


def _report(ready: ModelReady, error: Exception) -> None:
    # Until it succeeds, or the next version does, the current one stays deployed.
    typer.echo(f"foldtune: {ready.model} {ready.version}: {' '.join(str(error).split())}; trying again", err=True)
