"""Which status of a request is the newest: the one rule for every reader of ``fine-tune-status``."""

from collections.abc import Iterable
from typing import Protocol

from pydantic import NonNegativeInt

from foldtune.events import FineTuneStatus, Model


class Ordered(Protocol):
    """What the order of two statuses of one request depends on."""

    @property
    def offset(self) -> int:
        """On ``fine-tune-status``."""

    @property
    def terminal(self) -> bool:
        """Whether its state is final."""


class StatusRecord(Model):
    """A status and its position on ``fine-tune-status``."""

    partition: NonNegativeInt
    offset: NonNegativeInt
    status: FineTuneStatus

    @property
    def terminal(self) -> bool:
        """Whether its state is final."""
        return self.status.state.terminal


def supersedes(new: Ordered, old: Ordered) -> bool:
    """Whether ``new`` is the newer status of one request (same id, same model).

    A final state supersedes any other; of two final ones the lower offset wins, of two others the higher one:

    - A model's statuses are all in one partition, and only the coordinator of that partition publishes them: offsets
      are in the order of its decisions. Times are not: ``at`` is of whoever reported, each with its own clock.
    - A request ends once, but producers are not fenced: a worker that was paused past its session may still publish an
      earlier state after its successor has published the end, or an end of its own.
    - Redelivery and reading the topic again bring lower offsets, which lose.
    """
    if new.terminal and old.terminal:
        return new.offset < old.offset
    return (new.terminal, new.offset) > (old.terminal, old.offset)


def first_end(first: FineTuneStatus, later: FineTuneStatus) -> FineTuneStatus:
    """What counts of two published ends of one request: the first, whose run continues only as long as both say so."""
    return first if later.run_continues else first.model_copy(update={"run_continues": None})


def merge_status(known: Iterable[StatusRecord], new: StatusRecord) -> tuple[StatusRecord, ...]:
    """The newest record of each model under one request id, ``new`` included; the first is the id's status.

    An id used for two models names two requests. Their offsets are not comparable (two partitions), so the one with the
    later ``at`` comes first. Both have to be kept: comparing any two records by offset within a model and by clock
    between models is not transitive, and a single kept record would depend on the order of delivery.

    A status without ``log_url`` inherits that of the record it replaces: only the launcher knows the log's page, and
    the trainer reports later.
    """
    records = {record.status.model: record for record in known}
    old = records.get(new.status.model)
    if old is None or supersedes(new, old):
        newest, status = new, new.status
        if old and status.log_url is None:
            status = status.model_copy(update={"log_url": old.status.log_url})
    else:
        newest, status = old, old.status
    if old and old.status.state.terminal and new.status.state.terminal:
        status = first_end(status, old.status if newest is new else new.status)
    records[status.model] = newest.model_copy(update={"status": status})
    return tuple(sorted(records.values(), key=lambda record: (record.status.at, record.status.model), reverse=True))


def select_status(records: Iterable[StatusRecord], model: str | None) -> FineTuneStatus | None:
    """Of an id's records as ``merge_status`` orders them: the model's status, without one that of the id."""
    return next((record.status for record in records if model in {None, record.status.model}), None)
