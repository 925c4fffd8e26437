"""``foldtune worker``."""

import typer

app = typer.Typer(add_completion=False)


@app.command()
def worker() -> None:
    """Run a stream worker until SIGINT or SIGTERM; several share the partitions."""
    from foldtune.settings import load_settings  # noqa: PLC0415  slow to import, and help must be quick
    from streams.worker.process import run  # noqa: PLC0415  needs the extra

    run(load_settings())
