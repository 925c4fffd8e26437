"""The brokers' time, by which a worker decides what is too old and what is overdue.

Its machine's clock may be wrong by any amount, and jump: then it would delete what others keep, and end what others
wait for. Each acknowledgement tells when a broker appended a record, and to the newest of these the time since is
added. Where brokers do not stamp what they append, the machine's clock is all there is.
"""

import time
from datetime import UTC, datetime

import structlog
from aiokafka.structs import RecordMetadata

from foldtune import events
from foldtune.bounds import is_plausible
from streams.metrics import CLOCK_SKEW

_log = structlog.get_logger()
# The acknowledgement of a record takes a part of it.
MAX_SKEW_SECONDS = 60
# aiokafka's RecordMetadata.timestamp_type of a record that a broker has stamped.
_APPEND_TIME = 1


class BrokerClock:
    """Told of every acknowledged record."""

    def __init__(self) -> None:
        # Whether a record was acknowledged. Until then nothing is overdue, since the brokers' time is not known.
        self.known = False
        # When a broker appended a record, and when that was told, in seconds since boot.
        self._newest: tuple[float, float] | None = None
        self._skewed = False
        # With the first record that a broker has stamped, if the machine's clock is wrong: its time, and the broker's.
        self.wrong_at_first: tuple[datetime, datetime] | None = None

    @property
    def stamped(self) -> bool:
        """Whether the time is the brokers', and not the machine's."""
        return self._newest is not None

    def now(self) -> datetime:
        """The brokers' time; the machine's where it is not known."""
        if self._newest is None:
            return events.now()
        appended, told = self._newest
        return datetime.fromtimestamp(appended + _since_boot() - told, UTC)

    def observe(self, record: RecordMetadata) -> None:
        """Take the time from a record that was acknowledged just now."""
        self.known = True
        if record.timestamp_type == _APPEND_TIME and is_plausible(record.timestamp):
            first, mine, brokers = self._newest is None, time.time(), record.timestamp / 1000
            self._newest = brokers, _since_boot()
            self._compare(mine - brokers)
            if first and self._skewed:
                self.wrong_at_first = datetime.fromtimestamp(mine, UTC), datetime.fromtimestamp(brokers, UTC)

    def _compare(self, skew: float) -> None:
        CLOCK_SKEW.set(skew)
        skewed = abs(skew) > MAX_SKEW_SECONDS
        # Once, until it is right again.
        if skewed and not self._skewed:
            _log.error("clock differs from the brokers'", seconds=round(skew), at_most=MAX_SKEW_SECONDS)
        self._skewed = skewed


def _since_boot() -> float:
    # Goes on while the machine is suspended.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


# One for the process, like its own clock.
CLOCK = BrokerClock()
now = CLOCK.now
