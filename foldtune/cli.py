"""The command line. A command's module is imported when it is called: help stays fast and extras optional.

The SDK's own commands are listed here; those of ``foldtune-server`` are found through the entry-point group
``foldtune.commands``.
"""

import signal
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from foldtune.shutdown import exit_after

ENTRY_POINT_GROUP = "foldtune.commands"
# Below a cluster's grace of 30 s, and above what the client waits for in ``close``.
EXIT_SECONDS = 27.0
# Module and help of every command, in the order of the overview; those without a module are in foldtune-server.
COMMANDS: dict[str, tuple[str | None, str]] = {
    "local": (None, "Run Kafka and S3 on this machine, without Docker."),
    "demo": (None, "Run the whole loop on this machine, from logs to a model."),
    "worker": (None, "Run a stream worker."),
    "api": (None, "Serve fine-tune requests and their status over HTTP."),
    "launcher": (None, "Run training jobs on this machine."),
    "notify": (None, "Tell webhooks what becomes of requests and policies."),
    "import": ("foldtune.commands.imports", "Publish events from JSON Lines files."),
    "request": ("foldtune.commands.request", "Request a fine-tuned model."),
    "cancel": ("foldtune.commands.cancel", "Cancel a request."),
    "status": ("foldtune.commands.status", "Show the status of requests."),
    "policy": ("foldtune.commands.policy", "Show, set, pause and explain automatic retraining."),
    "models": (
        "foldtune.commands.models",
        "List the newest version of every model, or questions of one.",
    ),
    "approve": ("foldtune.commands.approve", "Approve a version of a model for deployment."),
    "reject": ("foldtune.commands.reject", "Reject a version of a model: it is never deployed."),
    "subscribe": ("foldtune.commands.subscribe", "Print model-ready events as JSON Lines."),
    "deploy": ("foldtune.commands.deploy", "Download the newest models to a folder, verified."),
    "dead-letters": (None, "List, show and replay rejected records."),
    "restore": (None, "Republish events from a snapshot after topics were lost."),
    "erase": (None, "Erase a user, log, conversation, agent, document or folder."),
    "negatives": (None, "Explain the hard negatives of a question."),
    "topics": ("foldtune.commands.topics", "Create the topics, and print or create who may use them."),
    "config": ("foldtune.commands.config", "Show the effective settings."),
    "schemas": ("foldtune.commands.schemas", "Write the reference of the events and their JSON Schemas."),
}


class LazyGroup(TyperGroup):
    """Lists the installed commands; imports only the one that is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
        self._sources: dict[str, str | EntryPoint] = {}
        for name, (module, text) in COMMANDS.items():
            if source := module or installed.pop(name, None):
                self._add(name, source, text)
        for name, entry in sorted(installed.items()):
            self._add(name, entry, f"From {entry.module}.")
        self._missing = [name for name in COMMANDS if name not in self._sources]
        if self._missing:
            self.epilog = f"Not installed: {', '.join(self._missing)}; they come with: pip install foldtune-server"

    def _add(self, name: str, source: str | EntryPoint, text: str) -> None:
        self._sources[name] = source
        self.add_command(TyperCommand(name, help=text))

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
            _exit_with(error)
        command = typer.main.get_command(app)
        command.name = name
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            _exit_with(error)


def _exit_with(error: Exception) -> NoReturn:
    """Exit with status 2 and one line if the user can fix the error; a defect gets its traceback."""
    from foldtune.commands.errors import user_message  # noqa: PLC0415  help needs none of it

    if (message := user_message(error)) is None:
        raise error
    typer.echo(f"foldtune: {message}", err=True)
    raise typer.Exit(2) from error


# Plain help, since importing rich takes longer than the overview may; the commands' own help is rich.
app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(version("foldtune"))
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Improve an agent's retrieval model with the agent's own chat logs."""


def _end(*_: object) -> NoReturn:
    # What an exit waits for, such as the acknowledgement of events or a download, may hang with its server.
    exit_after(EXIT_SECONDS, 128 + signal.SIGTERM)
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Entry point of the ``foldtune`` script."""
    # The first process of a container ignores SIGTERM without a handler; commands with more to do set their own.
    signal.signal(signal.SIGTERM, _end)
    app()


if __name__ == "__main__":
    main()
