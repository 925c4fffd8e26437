"""The command line. A command's module is imported when it is called: help is quick, and extras stay optional."""

from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

# Name: where the command is, and what the overview says of it.
COMMANDS = {
    "local": ("infra.local.commands", "Kafka and S3 on this machine, without Docker."),
    "demo": ("foldtune.demo.commands", "The whole loop on this machine, from logs to a model."),
    "worker": ("foldtune.commands.worker", "Run a stream worker."),
    "api": ("foldtune.commands.api", "Take requests and tell their status over HTTP."),
    "launcher": ("foldtune.commands.launcher", "Run the training jobs on this machine."),
    "import": ("foldtune.commands.imports", "Send documents, chat logs or feedback from JSON Lines files."),
    "request": ("foldtune.commands.request", "Ask for a fine-tuned model."),
    "cancel": ("foldtune.commands.cancel", "Take a request back."),
    "status": ("foldtune.commands.status", "What became of the requests."),
    "models": ("foldtune.commands.models", "The newest version of every model."),
    "subscribe": ("foldtune.commands.subscribe", "Announcements of models, as JSON Lines."),
    "deploy": ("foldtune.commands.deploy", "Keep the newest models in a folder, verified."),
    "dead-letters": ("foldtune.commands.dead_letters", "What could not be used: list, show and replay it."),
    "restore": ("foldtune.commands.restore", "Events from the snapshot of a training, where topics are lost."),
    "erase": ("foldtune.commands.erase", "Forget a user, a log, a conversation or a document."),
    "negatives": ("foldtune.commands.negatives", "Why a question has the hard negatives that it has."),
    "topics": ("foldtune.commands.topics", "The topics on the brokers."),
    "config": ("foldtune.commands.config", "The settings as they are in force."),
    "schemas": ("foldtune.commands.schemas", "Write the events' page and JSON Schemas."),
}


class LazyGroup(TyperGroup):
    """Knows its commands by name, and imports the one that is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, (_, text) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=text))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, stub, rest = super().resolve_command(ctx, args)
        if name is None or stub is None:
            return name, stub, rest
        try:
            command = typer.main.get_command(import_module(COMMANDS[name][0]).app)
        except ImportError as error:
            _fail(error)
        command.name = name
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    """End with one line for what the user can mend; anything else is a defect and shows itself whole."""
    from foldtune.errors import explain  # noqa: PLC0415  needed only now

    if (line := explain(error)) is None:
        raise error
    typer.echo(f"foldtune: {line}", err=True)
    raise typer.Exit(2) from error


# Plain help, since rich's takes longer to import than the overview may take to show; the commands' own help is rich.
app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415  takes longer than help may

        typer.echo(version("foldtune"))
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep an agent's retrieval model getting better from the agent's own chat logs."""


def main() -> None:
    """The entry point of the ``foldtune`` script."""
    app()


if __name__ == "__main__":
    main()
