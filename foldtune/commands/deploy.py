"""``foldtune deploy``."""

import time
from functools import partial
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
from foldtune.reviews import Standing
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)

# So long --once tries again, and so often everything looks whether something is due.
_ONCE_SECONDS = 30.0
_TICK_SECONDS = 0.25
# Exit status of --once.
_WITHOUT_VERSION = 3


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

    A version that 'current' has been set back from is not deployed again; the next newer one is. Versions of models in
    approval.models are waited for until they are approved ('foldtune approve'); what was rejected is never deployed.

    Exit status of --once: 3 if a model has no version that may be deployed, or none was announced; the reason is on
    standard error. If an older version may be, that is deployed, and the status is 0.
    """
    settings = load_settings()
    store = S3ObjectStore(settings.s3)
    with FoldtuneClient(settings) as client:
        if version is not None:
            chosen = _announced(client, model or [], version)
            client.reviews.refresh()
            if (standing := client.reviews.standing(chosen)) is not Standing.ALLOWED:
                raise UserError(_refusal(client, chosen, standing))
            typer.echo(str(fetch_model(chosen, store, target)))
        elif once:
            _deploy_once(client, store, target, model or [])
        else:
            deployer = Deployer(store, target, _report, rejected=partial(_is_rejected, client))
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
    client.reviews.refresh()
    newest, refused = _newest_allowed(client)
    if unknown := sorted(set(models) - set(newest) - set(refused)):
        raise UserError(f"unknown models: {', '.join(unknown)}")
    if not newest and not refused:
        typer.echo("foldtune: no version of a model has been announced", err=True)
        raise typer.Exit(_WITHOUT_VERSION)
    without: set[str] = set()
    for model, reason in refused.items():
        if not models or model in models:
            typer.echo(f"foldtune: {reason}", err=True)
            without |= {model} - set(newest)
    errors: dict[str, Exception] = {}

    def failed(ready: ModelReady, error: Exception) -> None:
        # What is not as announced does not become so.
        if isinstance(error, ModelFileError):
            raise UserError(f"{ready.model} {ready.version}: {error}") from error
        errors[ready.model] = error

    def rejected(ready: ModelReady) -> bool:
        if found := _is_rejected(client, ready):
            typer.echo(f"foldtune: {_refusal(client, ready, Standing.REJECTED)}", err=True)
            without.add(ready.model)
        return found

    deployer = Deployer(store, target, failed, rejected=rejected)
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
    if without:
        raise typer.Exit(_WITHOUT_VERSION)


def _newest_allowed(client: FoldtuneClient) -> tuple[dict[str, ModelReady], dict[str, str]]:
    """The newest version of each model that may be deployed, and why the newest of all may not."""
    newest: dict[str, ModelReady] = {}
    refused: dict[str, ModelReady] = {}
    for ready in client.announcements():
        known = newest if client.reviews.standing(ready) is Standing.ALLOWED else refused
        if ready.model not in known or ready.version >= known[ready.model].version:
            known[ready.model] = ready
    reasons = {
        model: _refusal(client, ready, client.reviews.standing(ready))
        for model, ready in refused.items()
        if model not in newest or ready.version > newest[model].version
    }
    return newest, reasons


def _refusal(client: FoldtuneClient, ready: ModelReady, standing: Standing) -> str:
    review = client.reviews.of(ready.model, ready.version)
    if standing is Standing.REJECTED and review:
        comment = f": {review.comment}" if review.comment else ""
        return f"{ready.model} {ready.version} was rejected by {review.by} at {review.at.isoformat()}{comment}"
    return f"{ready.model} {ready.version} waits for 'foldtune approve {ready.model} {ready.version}'"


def _is_rejected(client: FoldtuneClient, ready: ModelReady) -> bool:
    client.reviews.refresh()
    return client.reviews.standing(ready) is Standing.REJECTED


def _report(ready: ModelReady, error: Exception) -> None:
    # Until it succeeds, or the next version does, the current one stays deployed.
    typer.echo(f"foldtune: {ready.model} {ready.version}: {' '.join(str(error).split())}; trying again", err=True)
