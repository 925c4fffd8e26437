"""The policies of all models: what people have set on the topic ``policies``, else what the settings say."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import structlog
from pydantic import ValidationError

from foldtune.events import RetrainingPolicy
from foldtune.kafka import partition_of
from foldtune.policy import FROM_SETTINGS, MAX_POLICY_BYTES
from foldtune.reasons import explain
from foldtune.settings import Settings
from foldtune.topics import Topic
from streams.metrics import SKIPPED_RECORDS
from streams.partitions.broker_clock import now

_log = structlog.get_logger()
ReadFrom = Callable[[int, int], AsyncIterator[Any]]


async def new_records(read: ReadFrom, partitions: int, next_offsets: dict[int, int]) -> AsyncIterator[Any]:
    """What was added to each partition of a topic; ``next_offsets`` go on as records are taken."""
    for partition in range(partitions):
        async for record in read(partition, next_offsets.get(partition, 0)):
            yield record
            next_offsets[partition] = record.offset + 1


class Policies:
    """A view of the topic, which a worker reads again and again: any partition may have folders of any rule."""

    def __init__(self, settings: Settings, read: ReadFrom | None = None) -> None:
        """``read`` gives the records of a partition from an offset on, to its present end; without, settings count."""
        self._settings = settings
        self._read = read
        self._next_offsets: dict[int, int] = {}
        self._stored: dict[str, RetrainingPolicy] = {}
        self._of_settings = {rule.model: settings.policy.rules_of(rule.model) for rule in settings.policy.rules}
        self._models: dict[int, list[str]] = {}
        self._find_models()
        # Whether the topic was read to its end once: before, it is not known what people have set.
        self.loaded = read is None

    async def refresh(self) -> None:
        """Read what is new; raises what ``read`` does."""
        if self._read is None:
            return
        async for record in new_records(self._read, self._settings.kafka.partitions, self._next_offsets):
            self._take(record)
        self._find_models()
        self.loaded = True

    def of(self, model: str) -> RetrainingPolicy | None:
        """The policy of a model: the stored one, unless it only repeats the settings; then these, with its pause.

        ``None`` for a model that nothing was ever said about.
        """
        stored, rules = self._stored.get(model), self._of_settings.get(model, ())
        if stored and stored.origin != FROM_SETTINGS:
            return stored
        if stored is None:
            event = RetrainingPolicy(model=model, at=now(), by="settings", origin=FROM_SETTINGS, rules=rules)
            return event if rules else None
        return stored if stored.rules == rules else stored.model_copy(update={"rules": rules, "at": now()})

    def models(self, partition: int | None = None) -> list[str]:
        """The models with a policy, of one partition or all, sorted."""
        if partition is not None:
            return self._models.get(partition, [])
        return sorted(model for models in self._models.values() for model in models)

    def unpublished(self, partition: int) -> Iterator[RetrainingPolicy]:
        """Policies of a partition's models that the settings have changed, for those who read the topic."""
        if self._read is None or not self.loaded:
            return
        for model in self.models(partition):
            policy = self.of(model)
            if policy and policy != self._stored.get(model):
                yield policy

    def _find_models(self) -> None:
        models: dict[int, list[str]] = defaultdict(list)
        for model in sorted({*self._stored, *self._of_settings}):
            models[self._partition_of(model)].append(model)
        self._models = models

    def _partition_of(self, model: str) -> int:
        return partition_of(model, self._settings.kafka.partitions)

    def _take(self, record: Any) -> None:
        if not record.value:
            self._stored.pop((record.key or b"").decode(errors="replace"), None)
            return
        try:
            policy = stored_policy(record, self._settings.kafka.partitions)
        except ValueError as error:
            # The policy before it goes on. Whoever sets one checks it; this is of another client or a newer release.
            SKIPPED_RECORDS.labels(Topic.POLICIES.label).inc()
            _log.error("invalid policy skipped", partition=record.partition, offset=record.offset, error=str(error))
            return
        self._stored[policy.model] = policy


def stored_policy(record: Any, partitions: int) -> RetrainingPolicy:
    """The policy of a record of ``policies``; raises ``ValueError`` for one that does not count."""
    try:
        policy = RetrainingPolicy.model_validate_json(record.value)
    except ValidationError as error:
        raise ValueError("; ".join(explain(error))) from error
    if partition_of(policy.model, partitions) != record.partition:
        msg = "not in the partition of its model"
        raise ValueError(msg)
    if len(record.value) > MAX_POLICY_BYTES:
        msg = f"{len(record.value)} bytes, at most {MAX_POLICY_BYTES}"
        raise ValueError(msg)
    return policy
