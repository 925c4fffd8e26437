"""The answers to previews that are being waited for."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from foldtune.events import Preview


class _Answer(msgspec.Struct):
    preview_id: str


class Waiting:
    """The answers to one question, by partition."""

    def __init__(self, partitions: int) -> None:
        self.answers: dict[int, Preview] = {}
        self._partitions = partitions
        self._complete = asyncio.Event()

    def add(self, answer: Preview) -> None:
        """Take an answer; a worker that took over a partition may repeat one."""
        if answer.partition < self._partitions:
            self.answers.setdefault(answer.partition, answer)
        if len(self.answers) == self._partitions:
            self._complete.set()

    async def wait(self, seconds: float) -> dict[int, Preview]:
        """The answers of all partitions, or those that have come in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._complete.wait()
        except TimeoutError:
            pass
        return self.answers


class PreviewBoard:
    """Hands answers to those who wait for them; all others are another replica's, or late."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._places = 0
        self._decoder = msgspec.json.Decoder(_Answer)

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def place(self, at_once: int) -> Iterator[bool]:
        """A place among so many previews, each of which asks several times; false if all are taken."""
        is_free = self._places < at_once
        self._places += is_free
        try:
            yield is_free
        finally:
            self._places -= is_free

    def apply(self, record: Any) -> None:
        """Take a record of ``previews``; raises ``ValueError``."""
        try:
            preview_id = self._decoder.decode(record.value).preview_id
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        if waiting := self._waiting.get(preview_id):
            waiting.add(Preview.model_validate_json(record.value))

    @contextmanager
    def expect(self, preview_id: str, partitions: int) -> Iterator[Waiting]:
        """Collect the answers to a question until the context ends."""
        waiting = self._waiting[preview_id] = Waiting(partitions)
        try:
            yield waiting
        finally:
            del self._waiting[preview_id]
