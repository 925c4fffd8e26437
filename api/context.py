"""What the routes work with, and who calls them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

import structlog
from fastapi import Depends, Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from api.access import RULES, Access, Caller, authorize
from api.mining import Miner
from api.problems import ProblemError
from api.publishing import Auditor, EventPublisher
from api.sign_in import SignIn
from api.view.system import SystemView
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings

# Of each caller, of the 2,000 connections that a replica has for all of them.
MAX_STREAMS = 100


class RateLimit:
    """So many calls of each caller in a minute, and so many open streams; each replica counts its own."""

    def __init__(self, per_minute: int) -> None:
        self._streams: Counter[str] = Counter()
        self._item = RateLimitItemPerMinute(per_minute)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def hit(self, caller: Caller) -> None:
        """Count a call; raises ``ProblemError`` (429) beyond the limit."""
        if not self._limiter.hit(self._item, caller.name):
            reason = f"at most {self._item.amount} calls a minute of each caller (api.requests_per_minute)"
            raise ProblemError(HTTPStatus.TOO_MANY_REQUESTS, reason, headers={"retry-after": "5"})

    def check_streams(self, caller: Caller) -> None:
        """Raises ``ProblemError`` (429) if the caller may open no further stream."""
        if self._streams[caller.name] >= MAX_STREAMS:
            reason = f"at most {MAX_STREAMS} open streams of each caller"
            raise ProblemError(HTTPStatus.TOO_MANY_REQUESTS, reason, headers={"retry-after": "5"})

    @contextmanager
    def stream(self, caller: Caller) -> Iterator[None]:
        """Count an open stream."""
        self._streams[caller.name] += 1
        try:
            yield
        finally:
            self._streams[caller.name] -= 1
            if not self._streams[caller.name]:
                del self._streams[caller.name]


@dataclass(frozen=True)
class Services:
    """What the routes work with."""

    settings: Settings
    sign_in: SignIn
    rate_limit: RateLimit
    view: SystemView
    store: ObjectStore
    publisher: EventPublisher
    audit: Auditor
    miner: Miner


def services(request: Request) -> Services:
    """The services of the application."""
    found: Services = request.app.state.services
    return found


def route_of(request: Request) -> str:
    """Method and path of the route, as ``RULES`` has them."""
    return f"{request.method} {request.scope['route'].path_format}"


async def access(request: Request) -> Access:
    """Who calls, and what of their grants counts here. It runs before every route."""
    route = route_of(request)
    if route in RULES and RULES[route] is None:
        return Access(Caller("nobody"), ())
    given = services(request)
    caller = await given.sign_in.caller(request.headers)
    structlog.contextvars.bind_contextvars(caller=caller.name)
    given.rate_limit.hit(caller)
    return authorize(route, caller, request.path_params.get("model"))


CurrentAccess = Annotated[Access, Depends(access)]
CurrentServices = Annotated[Services, Depends(services)]
