"""What counts as a standstill, and what ends the process."""

import asyncio
import threading
from collections.abc import Hashable

import pytest

from streams.worker import watchdog
from streams.worker.watchdog import Answers, LoopWatchdog, Standstill, Watchdog


def looked(*looks: tuple[float, dict[str, Hashable]], answers: Answers | None = None) -> Standstill | None:
    """The last of several looks, while the brokers answer."""
    dog, last = Watchdog(), None
    for now, due in looks:
        last = dog.look(due, answers or Answers(0, now), now)
    return last


def test_what_does_not_change_stands_still() -> None:
    assert looked((0, {"x": 1}), (4, {"x": 1}), (8, {"x": 1})) == ("x", 8)
    assert looked((0, {"x": 1, "y": 1}), (4, {"x": 2, "y": 1}), (8, {"x": 2, "y": 1})) == ("y", 8)


def test_what_moves_or_is_no_longer_due_does_not() -> None:
    assert looked((0, {"x": 1}), (4, {"x": 1}), (8, {"x": 2})) == ("x", 0)
    assert looked((0, {"x": 1}), (4, {}), (8, {"x": 1})) == ("x", 0)
    assert looked((0, {"x": 1}), (4, {})) is None


def test_time_without_brokers_does_not_count() -> None:
    still: list[tuple[float, dict[str, Hashable]]] = [(float(now), {"x": 1}) for now in range(0, 101, 4)]
    assert looked(*still, answers=Answers(0, 7)) == ("x", 7)
    # After the outage its time begins anew.
    assert looked(*still, answers=Answers(90, 100)) == ("x", 10)


def test_time_of_a_paused_process_does_not_count() -> None:
    assert looked((0, {"x": 1}), (4, {"x": 1}), (1000, {"x": 1})) == ("x", 0)


def test_a_blocked_event_loop_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    reasons: list[str] = []

    def end(what: str, seconds: float, *, stacks: list[str]) -> None:
        if not ended.is_set():
            reasons.extend([what, *stacks])
        ended.set()

    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "exit_standing_still", end)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        dog = LoopWatchdog(lambda: {"main": loop}, 0.05)
        dog.start()
        await asyncio.sleep(0.1)
        assert not ended.is_set()
        ended.wait(5)
        dog.stop()

    asyncio.run(main())
    assert reasons[0] == "event loop main"
    assert any("ended.wait(5)" in stack for stack in reasons)
