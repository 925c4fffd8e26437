"""Which announced versions may be deployed: what people have approved and rejected."""

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any

from kafka.errors import TopicAuthorizationFailedError
from pydantic import ValidationError

from foldtune.errors import TopicMissingError
from foldtune.events import ModelReady, ModelReviewed
from foldtune.reviews import ReviewTable, Standing
from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import Topic

# What is said about a version is heard of within this time.
_REFRESH_SECONDS = 0.5
# Partition, as the client names it, and offset.
Place = tuple[Any, int]


class Reviews:
    """Follows ``model-reviews``, from its beginning; whatever comes in what order, a rejection is final.

    Without the topic, or the right to read it, nothing is rejected; where ``approval.models`` asks for approvals, that
    is an error. Thread-safe.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._table = ReviewTable()
        self._feed: Generator[Any] | None = None
        self._lock = threading.Lock()
        self._refreshed_at = float("-inf")

    def standing(self, ready: ModelReady) -> Standing:
        """Whether a version may be deployed, by what is known; ``refresh`` first."""
        return self._table.standing(ready.model, ready.version, self._settings.approval.models)

    def of(self, model: str, version: str) -> ModelReviewed | None:
        """The review that decides on a version."""
        return self._table.of(model, version)

    def refresh(self) -> None:
        """Read what is new; the first time to the end, and then at most every half a second.

        Raises:
            TopicMissingError: there is no such topic, and approvals are required.
            NoBrokerError: the brokers do not answer.
        """
        with self._lock:
            if self._clock() - self._refreshed_at >= _REFRESH_SECONDS:
                self._read_on()
                self._refreshed_at = self._clock()

    def _read_on(self) -> None:
        if self._feed is None:
            try:
                for record in read(self._settings.kafka, Topic.REVIEWS):
                    self.note(record.value)
                self._feed = _following(self._settings)
            except (TopicMissingError, TopicAuthorizationFailedError):
                # Brokers, or the rights of a user, of before there were reviews.
                if self._settings.approval.models:
                    raise
                self._feed = _nothing()
        for record in self._feed:
            if record is None:
                break
            self.note(record.value)

    def close(self) -> None:
        """Disconnect; the next ``refresh`` begins anew."""
        with self._lock:
            if self._feed is not None:
                self._feed.close()
            self._feed, self._refreshed_at = None, float("-inf")

    def note(self, value: bytes | None) -> None:
        """Take one record; what cannot be read says nothing."""
        if value is None:
            return
        with suppress(ValidationError):
            self._table.add(ModelReviewed.model_validate_json(value))


def _following(settings: Settings) -> Generator[Any]:
    yield from read(settings.kafka, Topic.REVIEWS, follow=True, idle=True)


def _nothing() -> Generator[Any]:
    while True:
        yield None


class Waiting:
    """Announcements until their versions may be deployed, each with its place in a consumer group's topic."""

    def __init__(self, reviews: Reviews) -> None:
        self._reviews = reviews
        self._events: list[tuple[ModelReady, Place | None]] = []

    def add(self, ready: ModelReady, place: Place | None = None) -> None:
        """Take an announcement."""
        self._events.append((ready, place))

    def released(self) -> Iterator[ModelReady]:
        """Those that wait no longer, in the order in which they came; what was rejected is given up."""
        events, self._events = self._events, []
        released = []
        for ready, place in events:
            match self._reviews.standing(ready):
                case Standing.ALLOWED:
                    released.append(ready)
                case Standing.WAITING:
                    self._events.append((ready, place))
        return iter(released)

    def keep(self, assignment: Collection[Any]) -> None:
        """Give up what is of partitions that this member of the group does not have any more."""
        self._events = [(ready, place) for ready, place in self._events if place is None or place[0] in assignment]

    def uncommitted(self, positions: Mapping[Any, int | None]) -> dict[Any, int]:
        """The offsets to commit, given those of the next records: none beyond one that waits."""
        offsets = {partition: offset for partition, offset in positions.items() if offset is not None}
        for _, place in self._events:
            if place and place[0] in offsets:
                offsets[place[0]] = min(offsets[place[0]], place[1])
        return offsets
