"""``foldtune topics``."""

import logging
from typing import Annotated

import typer

from foldtune.commands.errors import UserError

app = typer.Typer(add_completion=False, help="Manage the topics, and who may use them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Manage the topics, and who may use them."""


@app.command()
def create() -> None:
    """Create missing topics; check the number of partitions of existing ones, and their configuration."""
    from foldtune.logs import configure_logs  # noqa: PLC0415
    from foldtune.settings import load_settings  # noqa: PLC0415
    from foldtune.topic_admin import create_topics  # noqa: PLC0415  slow to import, and help needs none of it
    from foldtune.topics import Topic  # noqa: PLC0415

    settings = load_settings()
    configure_logs(settings.log_level)
    # That no broker answers is the command's error, in one line.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    create_topics(settings.kafka, tuple(Topic))
    for topic in Topic:
        typer.echo(topic.named(settings.kafka.topic_prefix))


@app.command("acls")
def show_acls(
    user: Annotated[
        list[str] | None,
        typer.Option(metavar="PART=USER", help="A part's user at the brokers, if not foldtune-PART; may be repeated."),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create them, which takes the rights of a super user.")
    ] = False,
) -> None:
    """Print the ACLs of each part's user, as command lines of Kafka's own tool; nothing is removed."""
    from foldtune.acls import Part, acls, command_line  # noqa: PLC0415
    from foldtune.settings import load_settings  # noqa: PLC0415
    from foldtune.topic_admin import create_acls  # noqa: PLC0415

    settings = load_settings()
    users = {part.value: f"foldtune-{part}" for part in Part}
    for given in user or ():
        part, _, name = given.partition("=")
        if part not in users or not name:
            raise UserError(f"--user {given}: should be PART=USER, where PART is one of {', '.join(users)}")
        users[part] = name
    for part, name in users.items():
        principal, needed = f"User:{name}", tuple(acls(Part(part), settings))
        for acl in needed:
            typer.echo(command_line(principal, acl, settings.kafka.bootstrap_servers))
        if create:
            create_acls(settings.kafka, principal, needed)
