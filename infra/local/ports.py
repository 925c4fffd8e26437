"""Ports of the loopback interface."""

import random
import socket

from infra.local.errors import NoFreePortError

HOST = "127.0.0.1"

# Below the ephemeral ports of Linux (from 32768) and macOS (from 49152): there, a client that keeps connecting to a
# stopped server can be assigned the server's own port, connect to itself, and so occupy the port.
FREE_PORTS = range(20_000, 30_000)
ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Whether a server can listen on ``port`` now."""
    with socket.socket() as probe:
        # As Java does: connections of the previous server in TIME_WAIT do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(*, exclude: frozenset[int] = frozenset()) -> int:
    """A free port that is not in ``exclude``; a random one, so that stacks that start together do not collide.

    Raises:
        NoFreePortError: none was found in ``FREE_PORTS``.
    """
    # Not of the generator that a training in this process may have seeded, as in another one.
    for port in random.SystemRandom().sample(FREE_PORTS, ATTEMPTS):
        if port not in exclude and is_free(port):
            return port
    raise NoFreePortError(f"{FREE_PORTS.start}-{FREE_PORTS.stop - 1}")


def choose_port(preferred: int | None, *, exclude: frozenset[int] = frozenset()) -> int:
    """``preferred`` if it is free, else any free port; raises like ``free_port``."""
    if preferred is not None and preferred not in exclude and is_free(preferred):
        return preferred
    return free_port(exclude=exclude)
