"""How long past trainings took, by which the next one's time and cost are estimated."""

from collections import defaultdict
from datetime import datetime
from statistics import median
from typing import NamedTuple

from sortedcontainers import SortedKeyList

from foldtune.events import ModelReady, ModelReference

# The newest ones count: machines and settings change.
_NEWEST = 10


class Estimate(NamedTuple):
    """Of a training, by ``trainings`` earlier ones."""

    seconds: float
    cost_dollars: float | None
    trainings: int
    machine: str


class _Past(NamedTuple):
    published_at: datetime
    run: str
    machine: str
    # Of an example that is read, and beside the training.
    per_example: float
    other_seconds: float
    hourly_price: float | None


_Kind = tuple[str, str | None, str]


class PastTrainings:
    """By base model and trainable layers. Only versions that were promoted are known."""

    def __init__(self) -> None:
        self._past: dict[_Kind, SortedKeyList[_Past, tuple[datetime, str]]] = defaultdict(
            lambda: SortedKeyList(key=lambda past: past[:2])
        )

    def add(self, ready: ModelReady) -> None:
        """Take a version, however often."""
        work, seconds = ready.work, ready.seconds.get("all", 0.0)
        if work is None or not work.examples or seconds < ready.training_seconds:
            return
        past = _Past(
            published_at=ready.published_at,
            run=f"{ready.model}/{ready.version}",
            machine=work.machine,
            per_example=ready.training_seconds / work.examples,
            other_seconds=seconds - ready.training_seconds,
            hourly_price=ready.cost_dollars / seconds * 3600 if ready.cost_dollars and seconds else None,
        )
        known = self._past[_kind(ready.base_model, work.trainable_layers)]
        if past not in known:
            known.add(past)

    def estimate(
        self, base_model: ModelReference, trainable_layers: str, examples: int, before: datetime | None = None
    ) -> Estimate | None:
        """The time of a training that reads so many examples, as trainings published before a moment tell; ``None``
        without any on the machine of the newest.
        """
        known = self._past.get(_kind(base_model, trainable_layers), ())
        newest = [past for past in known if before is None or past.published_at < before][-_NEWEST:]
        alike = [past for past in newest if past.machine == newest[-1].machine]
        if not alike:
            return None
        training = median(past.per_example for past in alike) * examples
        seconds = training + median(past.other_seconds for past in alike)
        price = alike[-1].hourly_price
        return Estimate(seconds, None if price is None else seconds * price / 3600, len(alike), alike[-1].machine)


def _kind(base_model: ModelReference, trainable_layers: str) -> _Kind:
    return base_model.uri, base_model.revision, trainable_layers
