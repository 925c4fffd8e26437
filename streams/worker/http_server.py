"""A worker's HTTP server for operators: metrics, liveness and readiness."""

import socket
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.registry import Collector

from streams.errors import CannotListenError

_log = structlog.get_logger()
_SHUTDOWN_SECONDS = 1.0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 chooses a free one.

    Raises:
        CannotListenError: the host is unknown or not an address of this machine, or the port is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise CannotListenError(host, port, error) from error


class WorkerHttpServer:
    """Serves ``/metrics``, ``/health`` and ``/ready``."""

    def __init__(
        self,
        listener: socket.socket,
        collector: Collector,
        *,
        unhealthy: Callable[[], str | None],
        not_ready: Callable[[], str | None],
    ) -> None:
        """``unhealthy`` and ``not_ready`` return the reason as text, or ``None``."""
        self._listener = listener
        self._collector = collector
        self._unhealthy = unhealthy
        self._not_ready = not_ready
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Start serving."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._probe(self._unhealthy))
        app.router.add_get("/ready", self._probe(self._not_ready))
        REGISTRY.register(self._collector)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()
        host, port, *_ = self._listener.getsockname()
        _log.info("http server listening", host=host, port=port)

    async def stop(self) -> None:
        """Stop serving; requests in flight get a second."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None
            REGISTRY.unregister(self._collector)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _probe(self, problem: Callable[[], str | None]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def respond(_: web.Request) -> web.Response:
            reason = problem()
            return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

        return respond
