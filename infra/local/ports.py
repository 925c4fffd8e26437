"""Ports of the loopback interface."""

import random
import socket

from infra.local.errors import NoFreePortError

HOST = "127.0.0.1"

# Below the ports that Linux (from 32768) and macOS (from 49152) give to outgoing connections. Within those, a client
# that keeps connecting to a stopped server can be given the server's own port, meet itself there, and hold the port.
FREE_PORTS = range(20_000, 30_000)
ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Whether a server can listen on ``port`` now."""
    with socket.socket() as probe:
        # As Java does: connections of the last server that linger in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(*, but: frozenset[int] = frozenset()) -> int:
    """A port that nobody listens on, and that is not in ``but``.

    Picked by chance, so that stacks that start at the same moment do not meet.

    Raises:
        NoFreePortError: none was found in ``FREE_PORTS``.
    """
    for port in random.sample(FREE_PORTS, ATTEMPTS):
        if port not in but and is_free(port):
            return port
    raise NoFreePortError(f"{FREE_PORTS.start}-{FREE_PORTS.stop - 1}")


def choose_port(wanted: int | None, *, but: frozenset[int] = frozenset()) -> int:
    """``wanted`` where it can be had, else a free one; raises like ``free_port``."""
    if wanted is not None and wanted not in but and is_free(wanted):
        return wanted
    return free_port(but=but)
