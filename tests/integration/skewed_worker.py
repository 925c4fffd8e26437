"""The stream worker on a machine whose clock is a year ahead."""

import time
from datetime import datetime, timedelta, tzinfo

from foldtune import events
from foldtune.cli import main

SKEW = timedelta(days=365)


class SkewedDatetime(datetime):
    """Tells a time a year ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + SKEW


true_time = time.time
# All of a worker's own times come from here, and those of its Kafka records from ``time``.
events.datetime = SkewedDatetime  # type: ignore[attr-defined]
time.time = lambda: true_time() + SKEW.total_seconds()

# The export process imports this module too.
if __name__ == "__main__":
    main()
