"""``foldtune approve``."""

from typing import Annotated

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.events import ModelReady, ModelReviewed, now
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION")]
By = Annotated[str, typer.Option(help="Who does it: a pseudonym or a team.")]
Comment = Annotated[str | None, typer.Option(help="Why.")]
Ahead = Annotated[bool, typer.Option("--ahead", help="Also of a version that was not announced yet.")]
COMMAND_LINE = "command line"


@app.command()
def approve(
    model: ModelArgument,
    version: VersionArgument,
    by: By = COMMAND_LINE,
    comment: Comment = None,
    ahead: Ahead = False,
) -> None:
    """Approve a version: where approval.models asks for it, deployers have waited for this."""
    review(model, version, by=by, comment=comment, ahead=ahead, approved=True)
    typer.echo(f"{model} {version} approved")


def review(model: str, version: str, *, by: str, comment: str | None, ahead: bool, approved: bool) -> None:
    """Publish a review, unless the version was rejected before or nobody knows it."""
    with FoldtuneClient(load_settings()) as client:
        announced: list[ModelReady] = [
            ready for ready in client.announcements() if (ready.model, ready.version) == (model, version)
        ]
        if not announced and not ahead:
            raise UserError(f"{model}: no version {version!r} was announced; --ahead reviews one that is to come")
        client.reviews.refresh()
        known = client.reviews.of(model, version)
        if known and not known.approved:
            raise UserError(f"{model} {version} was rejected by {known.by} at {known.at.isoformat()}, which is final")
        client.review(ModelReviewed(model=model, version=version, approved=approved, by=by, comment=comment, at=now()))
