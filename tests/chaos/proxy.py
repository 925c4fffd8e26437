"""A TCP proxy that holds bytes back."""

import asyncio
import threading
from contextlib import suppress
from typing import Literal

from infra.local.ports import HOST


class HoldingProxy:
    """Forwards TCP connections to a port of this machine, and can hold the bytes back in each direction.

    What is held is delivered later, also for a client that has given up its connection or was killed: as with a
    network that comes back, a server gets late what was sent long ago.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        # Set while bytes flow to the server, and from it.
        self._flows = (asyncio.Event(), asyncio.Event())
        threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True).start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.release()

    def hold(self, *directions: Literal[0, 1]) -> None:
        """Hold what is sent to the server (0), by the server (1), or both."""
        for direction in directions:
            self._loop.call_soon_threadsafe(self._flows[direction].clear)

    def release(self) -> None:
        """Deliver what was held, in order, and what follows."""
        for flow in self._flows:
            self._loop.call_soon_threadsafe(flow.set)

    async def _listen(self) -> int:
        server = await asyncio.start_server(self._connect, HOST, 0)
        return int(server.sockets[0].getsockname()[1])

    async def _connect(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(HOST, self._target)
        except OSError:
            to_client.close()
            return
        await asyncio.gather(_forward(client, to_server, self._flows[0]), _forward(server, to_client, self._flows[1]))


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event) -> None:
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive() -> None:
        # All the time: a stream that was reset does not give out what it had received before.
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                received.put_nowait(data)
        received.put_nowait(b"")

    receiving = asyncio.create_task(receive())
    with suppress(OSError):
        while data := await received.get():
            await flow.wait()
            writer.write(data)
            await writer.drain()
    writer.close()
    await receiving
