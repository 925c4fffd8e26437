"""The worker's membership in its consumer group, as aiokafka's coordinator of the group has it.

What aiokafka lacks is added: heartbeats of a static member name its instance id, so that the brokers tell it when
another worker has taken its place. Without, they say that they do not know it, and it takes the place back, for ever.
"""

import asyncio
from typing import Any, cast

import faust
from aiokafka.errors import BrokerResponseError, NoError, RebalanceInProgressError, kafka_errors
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.protocol.types import Int16, Int32, Schema, String


class FencedInstanceIdError(BrokerResponseError):  # type: ignore[misc]
    """Another member of the group has the same instance id, and joined later."""

    errno = 82
    message = "FENCED_INSTANCE_ID"


kafka_errors[FencedInstanceIdError.errno] = FencedInstanceIdError


class _HeartbeatResponse(Response):  # type: ignore[misc]
    API_KEY = 12
    API_VERSION = 3
    SCHEMA = Schema(("throttle_time_ms", Int32), ("error_code", Int16))


class _Heartbeat(RequestStruct):  # type: ignore[misc]
    API_KEY = 12
    API_VERSION = 3
    RESPONSE_TYPE = _HeartbeatResponse
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("generation_id", Int32),
        ("member_id", String("utf-8")),
        ("group_instance_id", String("utf-8")),
    )


class _StaticMemberHeartbeat(Request[_Heartbeat]):  # type: ignore[misc]
    API_KEY = 12

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def build(self, request_struct_class: type[_Heartbeat]) -> _Heartbeat:
        member = self._coordinator
        return request_struct_class(member.group_id, member.generation, member.member_id, member._group_instance_id)


class Membership:
    """Looks at the coordinator, which runs in a thread of its own; safe from any thread."""

    def __init__(self, app: faust.App) -> None:
        self._app = cast(Any, app)
        self._coordinator: Any = None
        # Answers with which the group confirmed this member.
        self.confirmations = 0

    def attach(self) -> bool:
        """Follow the member's requests from now on; false while there is no coordinator yet."""
        coordinator = getattr(getattr(self._thread, "_consumer", None), "_coordinator", None)
        if self._coordinator is None and coordinator is not None:
            send = coordinator._send_req

            async def follow(request: Any) -> Any:
                if isinstance(request, HeartbeatRequest) and coordinator._group_instance_id is not None:
                    request = _StaticMemberHeartbeat(coordinator)
                response = await send(request)
                if getattr(response, "error_code", None) in {NoError.errno, RebalanceInProgressError.errno}:
                    self.confirmations += 1
                return response

            coordinator._send_req = follow
            self._coordinator = coordinator
        return self._coordinator is not None

    def error(self) -> str | None:
        """What ended the membership: aiokafka waits then for its caller to be told, and Faust never asks."""
        error = self._coordinator._pending_exception if self._coordinator else None
        return None if error is None else str(error)

    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of the coordinator's thread; ``None`` before it runs."""
        thread = self._thread
        return thread.thread_loop if thread and self._coordinator else None

    @property
    def _thread(self) -> Any:
        # Not app.consumer, which would create it.
        return getattr(self._app._consumer, "_thread", None)
