"""Ends a worker that stands still, so that its supervisor starts it anew.

A member that was fenced or forgotten, a rebalance or recovery that does not end, an ingest that hangs: in each
something is due and does not move. Time counts only while the brokers answer and this process runs: without brokers a
restart changes nothing, and after an outage or a pause the worker has its time to recover.
"""

import os
import sys
import threading
import time
import traceback
from asyncio import AbstractEventLoop
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import NamedTuple, NoReturn

import structlog

_log = structlog.get_logger()
# EX_SOFTWARE: the supervisor restarts the worker, which continues from the offsets in its tables.
EXIT_SOFTWARE = 70
LOOK_SECONDS = 1.0
# More time than this between two looks: the process was paused, or its event loop blocked.
_PAUSE_SECONDS = 5.0


class Standstill(NamedTuple):
    """What does not move, and for how long."""

    what: str
    seconds: float


class Answers(NamedTuple):
    """The brokers have answered from ``since`` to ``until``, without a failure in between; monotonic."""

    since: float
    until: float


class Watchdog:
    """Measures for how long something that is due has not moved."""

    def __init__(self) -> None:
        # The state of what is due, and since when it has been in it.
        self._since: dict[str, tuple[Hashable, float]] = {}
        self._looked: float | None = None
        self.longest: Standstill | None = None

    def look(self, due: Mapping[str, Hashable], answers: Answers, now: float) -> Standstill | None:
        """The longest standstill; ``due`` has the states of what should change."""
        if self._looked is not None and now - self._looked > _PAUSE_SECONDS:
            self._since.clear()
        self._looked = now
        former, self._since = self._since, {}
        for what, state in due.items():
            known = former.get(what)
            self._since[what] = known if known and known[0] == state else (state, now)
        standstills = [
            Standstill(what, answers.until - max(since, answers.since)) for what, (_, since) in self._since.items()
        ]
        self.longest = max(standstills, key=lambda standstill: standstill.seconds, default=None)
        return self.longest

    def seconds(self, what: str) -> float:
        """For how long ``what`` has not moved, by this process's clock; 0 if it is not due."""
        return time.monotonic() - self._since[what][1] if what in self._since else 0.0


class LoopWatchdog(threading.Thread):
    """Ends the process when an event loop does not run.

    It counts its own turns: while the process is paused there are none.
    """

    def __init__(self, loops: Callable[[], Mapping[str, AbstractEventLoop]], limit_seconds: float) -> None:
        super().__init__(name="loop-watchdog", daemon=True)
        self._loops = loops
        self._limit = limit_seconds / LOOK_SECONDS
        self._stopped = threading.Event()

    def run(self) -> None:
        missed: Counter[str] = Counter()
        answered: set[str] = set()
        while not self._stopped.wait(LOOK_SECONDS):
            for name, loop in self._loops().items():
                if name in missed and name not in answered:
                    missed[name] += 1
                    if missed[name] > self._limit:
                        exit_standing_still(f"event loop {name}", missed[name] * LOOK_SECONDS, stacks=_stacks())
                    continue
                missed[name] = 0
                answered.discard(name)
                # A closed loop: the worker is stopping.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(answered.add, name)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()


def exit_standing_still(what: str, seconds: float, **details: object) -> NoReturn:
    """Log it and end the process."""
    _log.error("standing still, exiting", what=what, seconds=round(seconds), **details)
    os._exit(EXIT_SOFTWARE)


def _stacks() -> list[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        f"{names.get(ident, ident)}: {''.join(traceback.format_stack(frame, limit=12))}"
        for ident, frame in sys._current_frames().items()
    ]
