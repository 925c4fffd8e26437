"""All of the API's view, and how far behind its topics it is."""

import asyncio
from contextlib import AsyncExitStack

from prometheus_client import Gauge

from api.problems import unavailable
from api.view.audit import MAX_ENTRIES, AuditLog
from api.view.follower import TopicFollower, partitions_of
from api.view.requests import RequestPlaces, RequestTable
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic

AGE = Gauge("foldtune_api_view_age_seconds", "How long ago the API's view had all that its topics had.")

# Brokers answer within a second; a new leader takes a few.
MAX_AGE_SECONDS = 15.0


class SystemView:
    """Read from ``topics`` before the first call is answered; what is only asked for now and then, after that."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self.requests = RequestTable()
        self.audit = AuditLog()
        self._places = RequestPlaces()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._statuses: TopicFollower | None = None
        self._requested: TopicFollower | None = None

    async def start(self) -> None:
        """Read the statuses to their end, and follow all topics from then on.

        Raises:
            NoBrokerError: no broker answers.
            TopicMissingError: no worker has created the topics yet.
        """
        topics = (Topic.FINE_TUNE_STATUS, Topic.FINE_TUNE_REQUESTS, Topic.AUDIT)
        counts = await asyncio.to_thread(partitions_of, self._settings, topics)
        self._statuses = self._follower({Topic.FINE_TUNE_STATUS: counts[Topic.FINE_TUNE_STATUS]}, self.requests)
        self._requested = self._follower({Topic.FINE_TUNE_REQUESTS: counts[Topic.FINE_TUNE_REQUESTS]}, self._places)
        audit = self._follower({Topic.AUDIT: counts[Topic.AUDIT]}, self.audit, tail=MAX_ENTRIES)
        await self._statuses.catch_up()
        self._tasks = [asyncio.create_task(follower.run()) for follower in (self._statuses, self._requested, audit)]
        AGE.set_function(lambda: self.age_seconds)

    def _follower(
        self, partitions: dict[Topic, int], table: RequestTable | RequestPlaces | AuditLog, tail: int | None = None
    ) -> TopicFollower:
        follower = TopicFollower(self._settings, partitions, table.apply, tail)
        self._stack.push_async_callback(follower.close)
        return follower

    @property
    def age_seconds(self) -> float:
        """How long ago all statuses were known."""
        age = self._statuses.age_seconds if self._statuses else None
        return float("inf") if age is None else age

    @property
    def not_ready(self) -> str | None:
        """Why calls should go to another replica."""
        if self.age_seconds > MAX_AGE_SECONDS:
            return (
                f"fine-tune-status was last read to its end {self.age_seconds:.0f} s ago, at most {MAX_AGE_SECONDS:.0f}"
            )
        return None

    @property
    def unhealthy(self) -> str | None:
        """Why this process should be started again."""
        return "topics are no longer read" if any(task.done() for task in self._tasks) or not self._tasks else None

    @property
    def places(self) -> RequestPlaces:
        """Where requests stand; raises ``ProblemError`` (503) while their topic has not been read to its end."""
        if self._requested is None or self._requested.age_seconds is None:
            raise unavailable()
        return self._places

    async def close(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
