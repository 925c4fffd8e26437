"""Times on the command line."""

from datetime import UTC, datetime

import typer

MOMENT_HELP = "ISO 8601, UTC unless it says otherwise."


def moment(text: str) -> datetime:
    """A time or a date as a moment in UTC; a typer parser, so that a mistake is answered with the option's name."""
    try:
        parsed = datetime.fromisoformat(text)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        msg = f"{text!r} is no time; one looks like 2025-01-31 or 2025-01-31T12:00:00Z"
        raise typer.BadParameter(msg) from None
