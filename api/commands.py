"""``foldtune api``."""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def api(
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs api.issuer or api.tokens_file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    console: Annotated[bool, typer.Option("--console", help="Serve the console, too: pages for people.")] = False,
) -> None:
    """Serve the HTTP API, until SIGINT or SIGTERM."""
    from api.server import serve  # noqa: PLC0415  needs the extra
    from foldtune.logs import configure_logs  # noqa: PLC0415
    from foldtune.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    configure_logs(settings.log_level)
    serve(settings, host, port, console=console)
