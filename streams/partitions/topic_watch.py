"""Looks at the topics again and again, as they were checked at the start: operators alter, delete and extend topics."""

import asyncio
from collections.abc import Callable, Mapping

import structlog
from kafka.errors import KafkaError
from prometheus_client import Gauge

from foldtune.errors import FoldtuneError
from foldtune.topic_admin import Misconfigured, TopicsFound
from streams.metrics import TOPIC_MISCONFIGURED
from streams.threads import TOPICS, run_in

_log = structlog.get_logger()
_INTERVAL_SECONDS = 30.0


class TopicWatch:
    """What is known of the topics; reports what is wrong with them, and alters nothing."""

    def __init__(self, inspect: Callable[[], TopicsFound], prefix: str = "") -> None:
        """``inspect`` may raise ``FoldtuneError``, ``KafkaError``, ``OSError``; metrics leave out ``prefix``."""
        self._inspect = inspect
        self._prefix = prefix
        self._seen: frozenset[Misconfigured] = frozenset()
        self._misconfigured: frozenset[Misconfigured] = frozenset()
        # The brokers' ids of topics, by full name.
        self.ids: Mapping[str, str] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def look(self) -> None:
        """Look once; what keeps it from looking leaves everything as it is."""
        try:
            found = await run_in(TOPICS, self._inspect)
        except (FoldtuneError, KafkaError, OSError) as error:
            # Each look reads the certificates again, which may be rotated halfway.
            _log.warning("topics not looked at", error=repr(error))
            return
        # One that is being made anew has no id for a moment.
        self.ids = {**self.ids, **found.ids}
        # Twice in a row: brokers hear of a new topic, and of a changed one, a moment after it was acknowledged.
        misconfigured = self._seen & frozenset(found.misconfigured)
        self._seen = frozenset(found.misconfigured)
        for mended in self._misconfigured - misconfigured:
            self._gauge(mended).set(0)
        for wrong in misconfigured:
            self._gauge(wrong).set(1)
        for new in sorted(misconfigured - self._misconfigured):
            _log.error("topic misconfigured", **new._asdict())
        self._misconfigured = misconfigured

    def _gauge(self, wrong: Misconfigured) -> Gauge:
        return TOPIC_MISCONFIGURED.labels(wrong.topic.removeprefix(self._prefix), wrong.setting)
