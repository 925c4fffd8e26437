"""``foldtune reject``."""

import typer

from foldtune.commands.approve import COMMAND_LINE, Ahead, By, Comment, ModelArgument, VersionArgument, review

app = typer.Typer(add_completion=False)


@app.command()
def reject(
    model: ModelArgument,
    version: VersionArgument,
    by: By = COMMAND_LINE,
    comment: Comment = None,
    ahead: Ahead = False,
) -> None:
    """Reject a version, for good: it is never deployed again. Where it is deployed already, it stays."""
    review(model, version, by=by, comment=comment, ahead=ahead, approved=False)
    typer.echo(f"{model} {version} rejected")
