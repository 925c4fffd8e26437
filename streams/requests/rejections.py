"""The versions that people have rejected, from the topic ``model-reviews``: none of them is an incumbent."""

from typing import Any

import structlog
from pydantic import ValidationError

from foldtune.events import MAX_REJECTED, ModelReviewed
from foldtune.reasons import explain
from foldtune.reviews import ReviewTable
from foldtune.topics import Topic
from streams.metrics import SKIPPED_RECORDS
from streams.requests.policies import ReadFrom, new_records

_log = structlog.get_logger()


class Rejections:
    """A view of the topic, which is read on whenever a training is about to begin."""

    def __init__(self, read: ReadFrom, partitions: int) -> None:
        self._read = read
        self._partitions = partitions
        self._next_offsets: dict[int, int] = {}
        self._reviews = ReviewTable()

    async def of(self, model: str) -> tuple[str, ...]:
        """The newest rejected versions of a model; raises what ``read`` does."""
        async for record in new_records(self._read, self._partitions, self._next_offsets):
            self._take(record)
        return self._reviews.rejected(model)[-MAX_REJECTED:]

    def _take(self, record: Any) -> None:
        if not record.value:
            return
        try:
            self._reviews.add(ModelReviewed.model_validate_json(record.value))
        except ValidationError as error:
            reason = "; ".join(explain(error))
            SKIPPED_RECORDS.labels(Topic.REVIEWS.label).inc()
            _log.error("invalid review skipped", partition=record.partition, offset=record.offset, error=reason)
