"""``foldtune topics``."""

import logging

import typer

app = typer.Typer(add_completion=False, help="Manage the topics.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Manage the topics."""


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
