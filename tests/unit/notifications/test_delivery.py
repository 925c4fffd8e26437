"""A webhook that fails is tried again, until its notice is too old, and holds up no other."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import Queue

import pytest

from foldtune.settings import NoticeType, Webhook
from notifications import delivery
from notifications.delivery import DeliveryQueue
from notifications.metrics import DELIVERED, FAILED, GIVEN_UP
from notifications.notices import Notice
from tests.unit.notifications.receiver import Receiver, running_receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(delivery, "MAX_WAIT_SECONDS", 0.01)
    with running_receiver() as running:
        yield running


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def webhook(receiver: Receiver, folder: Path, name: str) -> Webhook:
    (folder / "secret").write_bytes(b"s" * 32)
    url = f"http://127.0.0.1:{receiver.port}/"
    return Webhook.model_validate({"name": name, "url": url, "secret_file": folder / "secret", "private": True})


def notice(number: int) -> Notice:
    return Notice(f"foldtune-{number}", NoticeType.FAILED, "support", b"{}")


def test_notices_are_delivered_in_order_after_failures(
    receiver: Receiver, stop: threading.Event, tmp_path: Path
) -> None:
    receiver.answers = [500, 503, 204]
    settled: Queue[int] = Queue()
    queue = DeliveryQueue(webhook(receiver, tmp_path, "in-order"), 60, stop)
    for number in (1, 2):
        queue.put(notice(number), partial(settled.put, number))
    assert [settled.get(timeout=20), settled.get(timeout=20)] == [1, 2]
    assert [headers["webhook-id"] for _, headers, _ in receiver.received] == ["foldtune-1"] * 3 + ["foldtune-2"]
    assert DELIVERED.labels("in-order")._value.get() == 2
    assert FAILED.labels("in-order")._value.get() == 2


def test_what_waited_too_long_is_given_up_together(receiver: Receiver, stop: threading.Event, tmp_path: Path) -> None:
    receiver.answers = [500]
    began, done = time.monotonic(), threading.Event()
    queue = DeliveryQueue(webhook(receiver, tmp_path, "down"), 0.2, stop)
    for number in range(20):
        queue.put(notice(number), done.set if number == 19 else lambda: None)
    assert done.wait(20)
    # Not 20 times as long.
    assert time.monotonic() - began < 3
    assert GIVEN_UP.labels("down")._value.get() == 20


def test_a_stop_settles_nothing_that_was_not_delivered(
    receiver: Receiver, stop: threading.Event, tmp_path: Path
) -> None:
    receiver.answers = [500]
    settled: list[int] = []
    queue = DeliveryQueue(webhook(receiver, tmp_path, "stopped"), 60, stop)
    queue.put(notice(1), lambda: settled.append(1))
    while not receiver.received:
        time.sleep(0.01)
    stop.set()
    queue.join(20)
    assert not settled


def test_of_too_many_notices_the_earliest_are_given_up(
    receiver: Receiver, stop: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MAX_WAITING", 3)
    receiver.answers = [500]
    settled: list[int] = []
    queue = DeliveryQueue(webhook(receiver, tmp_path, "full"), 60, stop)
    for number in range(6):
        queue.put(notice(number), partial(settled.append, number))
    # The first is being delivered.
    assert settled == [1, 2, 3]
    assert GIVEN_UP.labels("full")._value.get() == 3
