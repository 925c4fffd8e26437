"""``foldtune topics``."""

import typer

app = typer.Typer(add_completion=False, help="The topics on the brokers.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The topics on the brokers."""


@app.command()
def create() -> None:
    """Create the topics that are missing, and check the partitions of those that are there."""
    from foldtune.kafka import create_topics  # noqa: PLC0415  imports take longer than help may
    from foldtune.settings import load_settings  # noqa: PLC0415
    from foldtune.topics import Topic  # noqa: PLC0415

    settings = load_settings()
    create_topics(settings.kafka, tuple(Topic))
    for topic in Topic:
        typer.echo(topic.named(settings.kafka.topic_prefix))
