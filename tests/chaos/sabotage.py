"""For each counter a correction that, disabled, makes it rise; so a counter of 0 says something."""

from typing import NamedTuple


class Sabotage(NamedTuple):
    """``without`` this correction of the workers and under these kinds of faults, ``counter`` rises."""

    without: str
    kinds: tuple[str, ...]
    counter: str


SABOTAGES = (
    Sabotage("durable-ingest", ("kill -9",), "lost"),
    Sabotage("unique-records", ("duplicates",), "duplicated"),
    Sabotage("order-of-events", ("duplicates",), "diverged_folders"),
    Sabotage("durable-requests", ("kill -9",), "requests_without_one_end"),
    Sabotage("known-folders", ("duplicates",), "requests_with_wrong_end"),
    Sabotage("durable-snapshots", ("kill -9",), "snapshots_altered"),
    Sabotage("durable-store", ("kill -9",), "stores_unlike_changelog"),
    Sabotage("durable-dead-letters", ("kill -9", "poison"), "dead_letters_missing"),
    Sabotage("counted-losses", ("records expired", "log truncated"), "losses_miscounted"),
    Sabotage("broker-time", ("wrong clock",), "dead_letters_unfounded"),
)
