"""Connections that bring no call do not keep others out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from api.server import Connection

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@asynccontextmanager
async def connected(state: ServerState) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(0.15)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(answer, log_config=None, lifespan="off")
    config.load()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()


@pytest.mark.parametrize("sent", [b"", HEAD])
def test_a_connection_without_a_call_is_ended(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.server._HEAD_SECONDS", 0.05)
    state = ServerState()

    async def run() -> None:
        async with connected(state) as (reader, writer):
            writer.write(sent)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            assert not state.connections

    asyncio.run(run())


def test_a_call_is_answered_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.server._HEAD_SECONDS", 0.05)

    async def run() -> None:
        async with connected(ServerState()) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            assert await asyncio.wait_for(reader.readline(), 5) == b"HTTP/1.1 204 No Content\r\n"

    asyncio.run(run())
