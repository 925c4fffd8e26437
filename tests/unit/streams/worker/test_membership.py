"""What a worker says to its group, and what it learns of its place in it."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest
from aiokafka.errors import NoError, RebalanceInProgressError, UnknownMemberIdError, for_code
from aiokafka.protocol.group import HeartbeatRequest

from streams.worker.membership import Membership


class GroupCoordinator:
    """As much of aiokafka's as is looked at."""

    group_id, generation, member_id = "foldtune", 3, "member-7"

    def __init__(self, instance_id: str | None) -> None:
        self._group_instance_id = instance_id
        self._pending_exception: Exception | None = None
        self.sent: list[Any] = []
        self.answer = NoError.errno

    async def _send_req(self, request: Any) -> Any:
        self.sent.append(request.prepare({12: (0, 3)}))
        return SimpleNamespace(error_code=self.answer)


def attached(coordinator: GroupCoordinator) -> Membership:
    thread = SimpleNamespace(_consumer=SimpleNamespace(_coordinator=coordinator))
    membership = Membership(cast(faust.App, SimpleNamespace(_consumer=SimpleNamespace(_thread=thread))))
    assert membership.attach()
    return membership


@pytest.mark.parametrize("instance_id", ["worker-1", None])
def test_the_heartbeats_of_a_named_worker_have_its_name(instance_id: str | None) -> None:
    coordinator = GroupCoordinator(instance_id)
    attached(coordinator)
    asyncio.run(coordinator._send_req(HeartbeatRequest("foldtune", 3, "member-7")))
    (heartbeat,) = coordinator.sent
    assert heartbeat.encode().endswith(b"\0\x08worker-1" if instance_id else b"\0\x08member-7")


@pytest.mark.parametrize(
    ("answer", "confirms"), [(NoError, 1), (RebalanceInProgressError, 1), (UnknownMemberIdError, 0)]
)
def test_answers_that_know_the_member_confirm_it(answer: Any, confirms: int) -> None:
    coordinator = GroupCoordinator(None)
    coordinator.answer = answer.errno
    membership = attached(coordinator)
    asyncio.run(coordinator._send_req(HeartbeatRequest("foldtune", 3, "member-7")))
    assert membership.confirmations == confirms


def test_that_another_worker_has_the_same_name_is_an_error_by_its_name() -> None:
    coordinator = GroupCoordinator("worker-1")
    membership = attached(coordinator)
    assert membership.error() is None
    coordinator._pending_exception = for_code(82)()
    assert membership.error() == "[Error 82] FencedInstanceIdError"
