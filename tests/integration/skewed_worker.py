"""The stream worker on a machine whose clock goes a year ahead once the file ``SKEW_FILE`` exists."""

import os
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

from foldtune import events
from foldtune.cli import main

SKEW = timedelta(days=365)


def skew() -> timedelta:
    """What the clock is wrong by."""
    return SKEW if Path(os.environ["SKEW_FILE"]).exists() else timedelta(0)


class SkewedDatetime(datetime):
    """Tells a time a year ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + skew()


true_time = time.time
# All of a worker's own times come from here, and those of its Kafka records from ``time``.
events.datetime = SkewedDatetime  # type: ignore[attr-defined]
time.time = lambda: true_time() + skew().total_seconds()

# The export process imports this module too.
if __name__ == "__main__":
    main()
