"""``foldtune worker``."""

import typer

app = typer.Typer(add_completion=False)


@app.command()
def worker() -> None:
    """Run a stream worker until SIGINT or SIGTERM; start as many as the load needs."""
    from foldtune.settings import load_settings  # noqa: PLC0415  imports take longer than help may
    from streams.worker.process import run  # noqa: PLC0415  needs the extra

    run(load_settings())
