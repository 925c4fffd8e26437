"""What a worker repeats, and what ends it."""

import asyncio
import os
from contextlib import suppress
from typing import NoReturn, cast

import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from faust.exceptions import ProducerSendError

from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from streams.worker import app
from streams.worker.app import create_app


class ProcessEndedError(Exception):
    """In place of the end of the process."""


def wrapped(cause: Exception) -> ProducerSendError:
    error = ProducerSendError()
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "exits"),
    [
        (KafkaTimeoutError(), []),
        (wrapped(KafkaTimeoutError()), []),
        (wrapped(MessageSizeTooLargeError()), [70]),
        (OSError("no space left on device"), [70]),
    ],
)
def test_work_is_repeated_while_the_brokers_are_at_fault_and_anything_else_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, error: Exception, exits: list[int]
) -> None:
    codes: list[int] = []
    calls: list[None] = []

    def end(code: int) -> NoReturn:
        codes.append(code)
        raise ProcessEndedError

    async def work() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise error

    monkeypatch.setattr(app, "LOOK_SECONDS", 0)
    monkeypatch.setattr(os, "_exit", end)
    with suppress(ProcessEndedError):
        asyncio.run(app._keep_running("consumer", work))
    assert codes == exits
    assert len(calls) == (1 if exits else 2)


def test_nothing_is_sent_again_after_the_session() -> None:
    conf = create_app(Settings(), cast(ObjectStore, None)).conf
    assert conf.producer_request_timeout * 2 <= conf.broker_session_timeout == 30
