"""Timestamps on the command line: ISO 8601, UTC without an offset."""

from datetime import UTC, datetime

import typer

TIMESTAMP_HELP = "ISO 8601; UTC without an offset"


def aware(text: str) -> datetime:
    """Parse a date or a time.

    Raises:
        ValueError: the text is neither.
    """
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def parse_timestamp(text: str) -> datetime:
    """Typer parser of a date or a time, in UTC; typer prints its error with the name of the option."""
    try:
        return aware(text).astimezone(UTC)
    except (ValueError, OverflowError):
        msg = f"{text!r} is not a timestamp such as 2025-01-31 or 2025-01-31T12:00:00Z"
        raise typer.BadParameter(msg) from None
