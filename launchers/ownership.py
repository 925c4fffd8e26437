"""Who runs an attempt, and how others tell that the owner is gone."""

import os
import socket
import uuid
from collections.abc import Callable

import psutil

from launchers.ledger import Owner

# The owner renews often, gives up its run when it could not for a while, and only long after that counts as dead: two
# runs of one job never overlap, as long as ending the run takes less than the difference of the last two.
RENEW_SECONDS = 10.0
GIVE_UP_SECONDS = 45.0
DEAD_SECONDS = 150.0


def this_process() -> Owner:
    """A new claimant in the present process."""
    return Owner(token=uuid.uuid4().hex, host=_host(), pid=os.getpid(), process_started=_started(os.getpid()))


def owner_is_dead(owner: Owner) -> bool:
    """Whether the owner was a process of this machine that is gone; ``False`` where that cannot be seen from here."""
    if owner.host != _host():
        return False
    try:
        return _started(owner.pid) != owner.process_started
    except psutil.NoSuchProcess:
        return True


class HeartbeatMonitor:
    """Measures, with this machine's clock alone, for how long another's heartbeat has not changed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heartbeat: object = None
        self._since = clock()

    def seconds(self, heartbeat: object) -> float:
        """How long the heartbeat has been as it is now, since it was first looked at."""
        if heartbeat != self._heartbeat:
            self._heartbeat, self._since = heartbeat, self._clock()
        return self._clock() - self._since


def _host() -> str:
    # The network card tells apart containers that were given the same host name.
    return f"{socket.gethostname()}-{uuid.getnode():x}"


def _started(pid: int) -> float:
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    return float(process.create_time())
