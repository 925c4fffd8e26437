"""Prometheus metrics of ``foldtune notify``."""

from prometheus_client import Counter, Gauge

DELIVERED = Counter("foldtune_notices_delivered", "Notices that a webhook has taken.", ["webhook"])
FAILED = Counter("foldtune_notice_attempts_failed", "Attempts to deliver that failed, and are repeated.", ["webhook"])
GIVEN_UP = Counter("foldtune_notices_given_up", "Notices that a webhook did not take in time.", ["webhook"])
UNREADABLE = Counter("foldtune_notices_unreadable", "Records that are neither a status nor a decision.")
WAITING = Gauge("foldtune_notices_waiting", "Notices that are not delivered yet.", ["webhook"])


def begin(webhook: str) -> None:
    """Show a webhook's counters from the start: one that appears with its first event does not increase by it."""
    for counter in (DELIVERED, FAILED, GIVEN_UP):
        counter.labels(webhook)
