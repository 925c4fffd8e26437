"""Which snapshot commands are exported."""

import asyncio
from datetime import timedelta
from typing import Any
from unittest import mock

from foldtune.events import SnapshotCommand, SnapshotPart, now
from foldtune.settings import Sets, Settings
from foldtune.topics import Topic
from streams.publishing.publisher import EventPublisher
from streams.snapshots.command_handler import SnapshotCommandHandler
from streams.training_sets.store import TrainingSets
from tests.memory_table import MemoryTable
from tests.support import fine_tune_request


def test_a_command_whose_request_has_timed_out_is_answered_and_not_exported() -> None:
    settings = Settings()
    publisher, anything = mock.create_autospec(EventPublisher, instance=True), mock.Mock()
    publisher.publish.return_value = ()
    offsets: Any = mock.Mock(catch_up=mock.AsyncMock(side_effect=AssertionError("exported")))
    handler = SnapshotCommandHandler(TrainingSets(MemoryTable(), Sets()), offsets, publisher, anything, settings)
    issued_at = now() - settings.worker.snapshot_timeout - timedelta(seconds=1)
    command = SnapshotCommand(request=fine_tune_request("r"), partition=0, issued_at=issued_at)
    asyncio.run(handler.export(command, 2))
    ((event,), _) = publisher.publish.await_args.args
    assert event.topic is Topic.SNAPSHOT_PARTS
    assert isinstance(event.event, SnapshotPart)
    assert (event.event.partition, event.event.examples) == (2, None)
    assert "more than 0:15:00 after it was issued" in (event.event.error or "")
