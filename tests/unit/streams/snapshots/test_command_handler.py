"""Which snapshot commands are exported."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest

from foldtune import events
from foldtune.events import SnapshotCommand, SnapshotPart
from foldtune.settings import Sets, Settings
from foldtune.topics import Topic
from streams.partitions.broker_clock import BrokerClock
from streams.publishing.publisher import EventPublisher
from streams.snapshots import command_handler
from streams.snapshots.command_handler import SnapshotCommandHandler
from streams.training_sets.store import TrainingSets
from tests.acknowledgement import acknowledgement
from tests.memory_table import MemoryTable
from tests.support import fine_tune_request

NOW = datetime(2026, 11, 26, tzinfo=UTC)


class ExportedError(Exception):
    """The snapshot is not left out."""


def error_of(issued_at: datetime) -> str:
    """What the part says that answers a command, whose export would raise ``ExportedError``."""
    settings = Settings()
    publisher, anything = mock.create_autospec(EventPublisher, instance=True), mock.Mock()
    publisher.publish.return_value = ()
    offsets: Any = mock.Mock(catch_up=mock.AsyncMock(side_effect=ExportedError))
    handler = SnapshotCommandHandler(TrainingSets(MemoryTable(), Sets()), offsets, publisher, anything, settings)
    command = SnapshotCommand(request=fine_tune_request("r"), partition=0, issued_at=issued_at)
    asyncio.run(handler.export(command, 2))
    ((event,), _) = publisher.publish.await_args.args
    assert event.topic is Topic.SNAPSHOT_PARTS
    assert isinstance(event.event, SnapshotPart)
    assert (event.event.partition, event.event.examples) == (2, None)
    return event.event.error or ""


@pytest.mark.parametrize("days", [0, 365, -365])
def test_a_command_whose_request_has_timed_out_by_the_brokers_time_is_answered_and_not_exported(
    monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    clock, timeout = BrokerClock(), Settings().worker.snapshot_timeout
    monkeypatch.setattr(command_handler, "CLOCK", clock)
    monkeypatch.setattr(events, "now", lambda: NOW + timedelta(days=days))
    stale = NOW - timeout - timedelta(seconds=1)
    # The brokers' time is not known yet.
    assert "ExportedError" in error_of(stale)
    clock.observe(acknowledgement(NOW))
    assert "more than 0:15:00 after it was issued" in error_of(stale)
    assert "ExportedError" in error_of(NOW - timeout + timedelta(minutes=1))
