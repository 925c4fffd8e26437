"""All of the API's view, and how far behind its topics it is."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import structlog
from prometheus_client import Gauge

from api.problems import unavailable
from api.view.audit import MAX_ENTRIES, AuditLog
from api.view.dead_letters import DeadLetterTable
from api.view.erasures import ErasureTable
from api.view.folders import FolderTable
from api.view.follower import Apply, TopicFollower, partitions_of
from api.view.models import ModelTable
from api.view.policies import DecisionTable, PolicyTable
from api.view.previews import PreviewBoard
from api.view.requests import Place, RequestPlaces, RequestTable
from foldtune.events import ModelReviewed
from foldtune.reviews import ReviewTable
from foldtune.settings import KafkaSettings
from foldtune.topics import Topic

_log = structlog.get_logger(__name__)

AGE = Gauge(
    "foldtune_api_view_age_seconds", "How long ago the API's view had all that its topics had, the one that lags most."
)

# Brokers answer within a second; a new leader takes a few.
MAX_AGE_SECONDS = 15.0


# What answers have to be current about.
_CURRENT = (
    Topic.FINE_TUNE_STATUS,
    Topic.MODEL_READY,
    Topic.ERASURE_CONFIRMATIONS,
    Topic.POLICIES,
    Topic.REVIEWS,
)


class SystemView:
    """Read from ``topics`` before the first call is answered; what is only asked for now and then, after that."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self.requests = RequestTable()
        self.models = ModelTable()
        self.erasures = ErasureTable()
        self.audit = AuditLog()
        self.policies = PolicyTable()
        self.reviews = ReviewTable()
        self._places = RequestPlaces()
        self._dead_letters = DeadLetterTable()
        self._folders = FolderTable()
        self._previews = PreviewBoard()
        self._decisions = DecisionTable()
        self._partitions: dict[Topic, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._followers: list[TopicFollower] = []
        self._current: TopicFollower | None = None
        self._requested: TopicFollower | None = None
        self._rejected: TopicFollower | None = None
        self._counted: TopicFollower | None = None
        self._decided: TopicFollower | None = None
        self._previewed: TopicFollower | None = None

    async def start(self) -> None:
        """Read statuses and models to their end, and follow all topics from then on.

        Raises:
            NoBrokerError: no broker answers.
            TopicMissingError: no worker has created the topics yet.
        """
        topics = (
            *_CURRENT,
            Topic.FINE_TUNE_REQUESTS,
            Topic.AUDIT,
            Topic.DEAD_LETTERS,
            Topic.ERASURES,
            Topic.FOLDER_STATS,
            Topic.POLICY_DECISIONS,
            Topic.PREVIEW_REQUESTS,
            Topic.PREVIEWS,
        )
        self._partitions = await asyncio.to_thread(partitions_of, self._settings, topics)
        tables = {
            Topic.FINE_TUNE_STATUS: self.apply_status,
            Topic.MODEL_READY: self.models.apply,
            Topic.ERASURE_CONFIRMATIONS: self.erasures.apply,
            Topic.POLICIES: self.apply_policy,
            Topic.REVIEWS: self.apply_review,
        }
        by_name = {topic.named(self._settings.topic_prefix): apply for topic, apply in tables.items()}
        self._current = self._follow(lambda record: by_name[record.topic](record), *_CURRENT, forget=self.forget)
        self._requested = self._follow(self._places.apply, Topic.FINE_TUNE_REQUESTS)
        self._rejected = self._follow(self._dead_letters.apply, Topic.DEAD_LETTERS)
        self._counted = self._follow(self._folders.apply, Topic.FOLDER_STATS)
        self._decided = self._follow(self._decisions.apply, Topic.POLICY_DECISIONS)
        # Only what is asked from now on.
        self._previewed = self._follow(self._previews.apply, Topic.PREVIEWS, tail=0)
        self._follow(self.audit.apply, Topic.AUDIT, tail=MAX_ENTRIES)
        await self._current.catch_up()
        self._tasks = [asyncio.create_task(follower.run()) for follower in self._followers]
        for task in self._tasks:
            task.add_done_callback(_log_end)
        AGE.set_function(lambda: self.age_seconds)

    def apply_status(self, record: Any) -> None:
        """Merge a record of ``fine-tune-status``; raises ``ValueError``."""
        if entry := self.requests.apply(record):
            self.models.apply_status(entry)

    def apply_policy(self, record: Any) -> None:
        """Take a record of ``policies``; raises ``ValueError``."""
        self.models.add_model(self.policies.apply(record, self.partitions(Topic.POLICIES)).policy.model)

    def forget(self, record: Any) -> None:
        """Take a record without a value."""
        if record.topic == Topic.POLICIES.named(self._settings.topic_prefix):
            self.policies.forget(record)

    def apply_review(self, record: Any) -> None:
        """Take a record of ``model-reviews``; raises ``ValueError``."""
        self.reviews.add(ModelReviewed.model_validate_json(record.value))

    def partitions(self, topic: Topic) -> int:
        """The number of a topic's partitions."""
        return self._partitions[topic]

    def _follow(
        self, apply: Apply, *topics: Topic, tail: int | None = None, forget: Apply | None = None
    ) -> TopicFollower:
        partitions = {topic: self._partitions[topic] for topic in topics}
        follower = TopicFollower(self._settings, partitions, apply, tail, forget)
        self._stack.push_async_callback(follower.close)
        self._followers.append(follower)
        return follower

    @property
    def age_seconds(self) -> float:
        """How long ago the topic that lags most was read to its end."""
        return max((follower.lag_seconds for follower in self._followers), default=float("inf"))

    @property
    def not_ready(self) -> str | None:
        """Why calls should go to another replica."""
        unread = [follower.topics for follower in self._followers if follower.age_seconds is None]
        if unread:
            return f"not read to their end yet: {', '.join(unread)}"
        lagging = [follower.topics for follower in self._followers if follower.lag_seconds > MAX_AGE_SECONDS]
        if lagging:
            return f"not read to their end for more than {MAX_AGE_SECONDS:.0f} s: {', '.join(lagging)}"
        return None if self._followers else "topics are not read yet"

    @property
    def unhealthy(self) -> str | None:
        """Why this process should be started again."""
        return "topics are no longer read" if any(task.done() for task in self._tasks) or not self._tasks else None

    def find_place(self, model: str, request_id: str, *, complete: bool = True) -> Place | None:
        """Where a request stands; with ``complete``, none is found only if there is none.

        Raises ``ProblemError`` (503) if that is not known, as the topic has not been read to its end.
        """
        place = self._places.get(model, request_id)
        if place is None and complete:
            _require_read(self._requested)
        return place

    @property
    def dead_letters(self) -> DeadLetterTable:
        """The dead letters; raises ``ProblemError`` (503) while their topic has not been read to its end."""
        _require_read(self._rejected)
        return self._dead_letters

    @property
    def folders(self) -> FolderTable:
        """The folders; raises ``ProblemError`` (503) while their topic has not been read to its end."""
        _require_read(self._counted)
        return self._folders

    @property
    def decisions(self) -> DecisionTable:
        """What policies have decided; raises ``ProblemError`` (503) while the topic has not been read to its end."""
        _require_read(self._decided)
        return self._decisions

    @property
    def previews(self) -> PreviewBoard:
        """The answers to previews; raises ``ProblemError`` (503) while their topic is not followed."""
        _require_read(self._previewed)
        return self._previews

    async def close(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("topics are no longer read", exc_info=error)


def _require_read(follower: TopicFollower | None) -> None:
    if follower is None or follower.age_seconds is None:
        raise unavailable()
