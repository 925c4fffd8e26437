"""Webhooks are told of what happens while they run, and after a kill of what happened meanwhile."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from foldtune.events import FineTuneStatus, State, now
from foldtune.kafka import Publisher
from foldtune.topics import Topic, request_key
from tests.support import ChildProcess
from tests.unit.notifications.receiver import Receiver, running_receiver


def publish(publisher: Publisher, request_id: str, state: State = State.FAILED) -> None:
    status = FineTuneStatus(request_id=request_id, model="support", state=state, at=now())
    key = request_key("support", request_id)
    publisher.publish(Topic.FINE_TUNE_STATUS, status, key=key, partition_by="support")


def until(condition: Callable[[], bool], child: ChildProcess) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert child.alive, child.log.read_text()
        assert time.monotonic() < deadline, child.log.read_text()
        time.sleep(0.05)


def told(receiver: Receiver) -> list[str]:
    return [json.loads(body)["data"]["request_id"] for _, _, body in receiver.received]


def test_nothing_is_lost_when_the_notifier_is_killed(
    variables: dict[str, str], publisher: Publisher, tmp_path: Path
) -> None:
    publish(publisher, "before-the-first-start")
    (tmp_path / "secret").write_bytes(b"s" * 32)
    with running_receiver() as receiver, running_receiver() as down:
        down.answers = [500]
        hooks: list[dict[str, object]] = [
            {"name": name, "url": f"http://127.0.0.1:{target.port}/", "secret_file": str(tmp_path / "secret")}
            for name, target in (("up", receiver), ("down", down))
        ]
        hooks = [hook | {"private": True} for hook in hooks]
        variables |= {"FOLDTUNE_NOTIFICATIONS__WEBHOOKS": json.dumps(hooks)}
        first = ChildProcess(["notify"], variables, tmp_path / "first.log")
        try:
            until(lambda: "reading" in first.log.read_text(), first)
            publish(publisher, "a", State.RUNNING)
            publish(publisher, "a")
            until(lambda: told(receiver) == ["a"] and bool(down.received), first)
        finally:
            first.kill()
        publish(publisher, "b")
        down.answers = [204]
        second = ChildProcess(["notify"], variables, tmp_path / "second.log")
        try:
            # At least once, in their order.
            until(lambda: told(receiver)[-1:] == ["b"] and told(down)[-1:] == ["b"], second)
            assert set(told(receiver)) == set(told(down)) == {"a", "b"}
            ids = {headers["webhook-id"] for _, headers, _ in receiver.received}
            assert len(ids) == 2
            assert second.stop() == 0
        finally:
            if second.alive:
                second.kill()
