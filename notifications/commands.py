"""``foldtune notify``."""

import signal
import threading
from typing import Annotated

import structlog
import typer

from foldtune.errors import InvalidSettingsError
from foldtune.logs import configure_logs
from foldtune.settings import NoticeType, Settings, load_settings
from foldtune.shutdown import exit_after

log = structlog.get_logger(__name__)

app = typer.Typer(add_completion=False)

END_SECONDS = 28.0


@app.command()
def notify(
    test: Annotated[str | None, typer.Option(help="Send a test notice to the webhook of this name, and end.")] = None,
) -> None:
    """Tell the webhooks of notifications.webhooks what happens, until SIGINT or SIGTERM."""
    settings = load_settings()
    configure_logs(settings.log_level)
    if not settings.notifications.webhooks:
        raise InvalidSettingsError(
            "FOLDTUNE_NOTIFICATIONS__WEBHOOKS (or notifications.webhooks in foldtune.toml) names no webhook"
        )
    if test is None:
        _serve(settings)
    else:
        _send_test(settings, test)


def _serve(settings: Settings) -> None:
    from prometheus_client import start_http_server  # noqa: PLC0415  needs the extra

    from foldtune.topic_admin import create_topics  # noqa: PLC0415
    from notifications.notifier import TOPICS, Notifier  # noqa: PLC0415
    from notifications.webhook import secret  # noqa: PLC0415

    for webhook in settings.notifications.webhooks:
        try:
            secret(webhook.secret_file.read_bytes())
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"secret_file of webhook {webhook.name}: {error}") from error
    create_topics(settings.kafka, TOPICS)
    stop = threading.Event()
    received: list[int] = []

    def end(number: int, _: object) -> None:
        received.append(number)
        exit_after(END_SECONDS, _code(received))
        stop.set()
        log.info("stopping", signal=signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if settings.notifications.metrics_port is not None:
        start_http_server(settings.notifications.metrics_port, settings.notifications.metrics_host)
    Notifier(settings, stop).run()
    raise typer.Exit(_code(received))


def _code(received: list[int]) -> int:
    return 130 if signal.SIGINT in received else 0


def _send_test(settings: Settings, name: str) -> None:
    import json  # noqa: PLC0415

    from foldtune.events import now  # noqa: PLC0415
    from notifications.notices import Notice  # noqa: PLC0415
    from notifications.webhook import DeliveryError, post  # noqa: PLC0415

    webhook = next((webhook for webhook in settings.notifications.webhooks if webhook.name == name), None)
    if webhook is None:
        names = ", ".join(webhook.name for webhook in settings.notifications.webhooks)
        raise typer.BadParameter(f"--test: there is no webhook {name!r}, only {names}")
    body = json.dumps({"type": "test", "timestamp": now().isoformat(), "data": {}}).encode()
    try:
        post(webhook, Notice("foldtune-test", NoticeType.COMPLETED, "", body))
    except (DeliveryError, OSError, ValueError) as error:
        typer.echo(f"Not delivered: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo("Delivered.")
