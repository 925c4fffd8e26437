"""Serves the API in a cluster, with uvicorn."""

import asyncio
import gc
import ipaddress
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import structlog
import uvicorn
from prometheus_client import start_http_server
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.app import create_app
from api.context import RateLimit, Services
from api.http import BrowserMiddleware, CallMiddleware
from api.mining import Miner
from api.publishing import Auditor, EventPublisher
from api.session_sign_in import sign_in_with_sessions
from api.sign_in import sign_in
from api.view.system import SystemView
from console.app import WithConsole, create_console, sessions_of
from console.sessions import Sessions
from foldtune.errors import InvalidSettingsError
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from foldtune.shutdown import exit_after

_log = structlog.get_logger(__name__)

# Calls in flight get this long to be answered; a cluster kills a process 30 s after SIGTERM.
_DRAIN_SECONDS, _SHUTDOWN_SECONDS = 5, 15.0
# Beyond these connections 503 is answered: each follower of a request has one.
_MAX_CONNECTIONS = 2_000
# A connection has this long to send the head of a call: without, whoever reaches the port could take all of them.
_HEAD_SECONDS = 10.0
# Python's own number is six on two cores: so many calls that an object store does not answer would hold up all others.
_THREADS = 64


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours stop it: uvicorn would raise a signal again once it has stopped, and the process end as if by it."""
        yield


class Connection(H11Protocol):
    """Ends without a call within ``_HEAD_SECONDS``: uvicorn waits for the first one, or for the rest of a head, for
    ever.
    """

    _idle_since: object = None

    def connection_made(self, transport: Any) -> None:
        """Begin to look whether there are calls."""
        super().connection_made(transport)
        self.loop.call_later(_HEAD_SECONDS, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self.transport.is_closing():
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._idle_since:
            self.transport.abort()
            return
        # Not idle with the same call the next time, unless nothing came after it.
        self._idle_since = self.cycle if is_idle else self
        self.loop.call_later(_HEAD_SECONDS, self._end_if_idle)


def serve(settings: Settings, host: str, port: int, *, console: bool = False) -> None:
    """Serve the API, and with ``console`` its pages, until SIGINT or SIGTERM.

    Raises:
        InvalidSettingsError: others than this machine could reach it, and there is no sign-in; or
            api.mine_previews is set, and the trainers' packages are missing.
        NoBrokerError: no broker answers.
        TopicMissingError: no worker has created the topics yet.
    """
    if not settings.api.has_sign_in and not _is_loopback(host):
        reason = f"without sign-in (api.issuer or api.tokens_file) it listens on 127.0.0.1 only, not on {host}"
        raise InvalidSettingsError(reason)
    asyncio.run(_serve(settings, host, port, console=console))


async def _serve(settings: Settings, host: str, port: int, *, console: bool) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
    async with AsyncExitStack() as stack:
        sessions = sessions_of(settings) if console else None
        view, publisher = SystemView(settings.kafka), EventPublisher(settings.kafka)
        services = Services(
            settings=settings,
            sign_in=sign_in_with_sessions(settings.api, sessions) if sessions else sign_in(settings.api),
            rate_limit=RateLimit(settings.api.requests_per_minute),
            view=view,
            store=S3ObjectStore(settings.s3),
            publisher=publisher,
            audit=Auditor(publisher),
            miner=Miner(enabled=settings.api.mine_previews),
        )
        app: ASGIApp = create_app(services, host)
        if sessions is not None:
            app = with_console(app, settings, sessions, host)
        stack.push_async_callback(view.close)
        stack.push_async_callback(services.miner.close)
        await view.start()
        # What was read stays: without it a full collection, which stops all calls, is short.
        gc.collect()
        gc.freeze()
        stack.push_async_callback(publisher.close)
        await publisher.start()
        if settings.api.metrics_port is not None:
            start_http_server(settings.api.metrics_port, settings.api.metrics_host)
        server = _Server(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=Connection,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, _stop, server, view)
        _log.info("http server listening", host=host, port=port, sign_in=settings.api.has_sign_in)
        await server.serve()


def with_console(api: ASGIApp, settings: Settings, sessions: Sessions, host: str) -> ASGIApp:
    """The API with the pages beside it, under the same checks."""
    names = ("localhost", host, *settings.api.hosts)
    pages = BrowserMiddleware(create_console(settings, api, sessions), names=names, origins=())
    return WithConsole(api, CallMiddleware(pages))


def _stop(server: uvicorn.Server, view: SystemView) -> None:
    """Without brokers the clients try for longer."""
    server.should_exit = True
    # Their callers ask another replica; uvicorn would wait for them, and cut them off with an error each.
    view.requests.end()
    reason = f"not stopped within {_SHUTDOWN_SECONDS:.0f} s"
    exit_after(_SHUTDOWN_SECONDS, 0, lambda: _log.warning("shutdown forced", reason=reason))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
