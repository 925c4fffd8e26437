"""``foldtune api``."""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def api(
    host: Annotated[str, typer.Option(help="Where to listen; there is no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
) -> None:
    """Take requests and tell their status over HTTP until SIGINT or SIGTERM, for the inside of a cluster."""
    from api.server import serve  # noqa: PLC0415  needs the extra
    from foldtune.logs import configure_logs  # noqa: PLC0415
    from foldtune.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    configure_logs(settings)
    serve(settings, host, port)
