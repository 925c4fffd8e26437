"""The command line. A command's module is imported when it is called, so help is quick and extras stay optional.

The SDK's own commands are listed here; those of ``foldtune-server`` are found through the entry points of the group
``foldtune.commands``.
"""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

ENTRY_POINTS = "foldtune.commands"
# Every command of foldtune, in the order of the overview; those without a module come with foldtune-server.
COMMANDS: dict[str, tuple[str | None, str]] = {
    "local": (None, "Kafka and S3 on this machine, without Docker."),
    "demo": (None, "The whole loop on this machine, from logs to a model."),
    "worker": (None, "Run a stream worker."),
    "api": (None, "Serve fine-tune requests and their status over HTTP."),
    "launcher": (None, "Run training jobs on this machine."),
    "import": ("foldtune.commands.imports", "Publish documents, chat logs or feedback from JSON Lines files."),
    "request": ("foldtune.commands.request", "Request a fine-tuned model."),
    "cancel": ("foldtune.commands.cancel", "Cancel a request."),
    "status": ("foldtune.commands.status", "Show the status of requests."),
    "models": ("foldtune.commands.models", "List the newest version of every model."),
    "subscribe": ("foldtune.commands.subscribe", "Print model-ready events as JSON Lines."),
    "deploy": ("foldtune.commands.deploy", "Keep the newest models in a folder, verified."),
    "dead-letters": (None, "List, show and replay records that were rejected."),
    "restore": (None, "Recreate events from a training's snapshot, after topics were lost."),
    "erase": (None, "Erase a user, a log, a conversation or a document."),
    "negatives": (None, "Explain which hard negatives a question has."),
    "topics": ("foldtune.commands.topics", "Create the topics."),
    "config": ("foldtune.commands.config", "Show the effective settings."),
    "schemas": ("foldtune.commands.schemas", "Write the reference of the events and their JSON Schemas."),
}


class LazyGroup(TyperGroup):
    """Lists the installed commands, and imports the one that is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
        self._sources: dict[str, str | EntryPoint] = {}
        for name, (module, text) in COMMANDS.items():
            if source := module or found.pop(name, None):
                self._sources[name] = source
                self.add_command(TyperCommand(name, help=text))
        for name, entry in sorted(found.items()):
            self._sources[name] = entry
            self.add_command(TyperCommand(name, help=f"From {entry.module}."))
        self._missing = [name for name in COMMANDS if name not in self._sources]
        if self._missing:
            self.epilog = f"Not installed: {', '.join(self._missing)}; they come with: pip install foldtune-server"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in self._missing:
            ctx.fail(f"{args[0]!r} is not installed; it comes with: pip install foldtune-server")
        name, stub, rest = super().resolve_command(ctx, args)
        if name is None or stub is None:
            return name, stub, rest
        source = self._sources[name]
        try:
            app = source.load() if isinstance(source, EntryPoint) else import_module(source).app
        except ImportError as error:
            _fail(error)
        command = typer.main.get_command(app)
        command.name = name
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    """Exit with one line if the user can fix the error; anything else is a defect and gets its traceback."""
    from foldtune.commands.errors import explain  # noqa: PLC0415  needed only now

    if (line := explain(error)) is None:
        raise error
    typer.echo(f"foldtune: {line}", err=True)
    raise typer.Exit(2) from error


# Plain help, since rich takes longer to import than the overview may take to print; the commands' own help is rich.
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
    """Entry point of the ``foldtune`` script."""
    app()


if __name__ == "__main__":
    main()
