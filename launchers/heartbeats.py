"""Ownership by heartbeats: for runs that die with the process that started them."""

import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from launchers.ledger import Attempt, Ledger, Owner
from launchers.ownership import Ownership
from launchers.periodic import Periodic, boottime

# The owner renews often, interrupts its run when it could not for a while, and only long after that counts as dead: two
# runs of one job never overlap, as long as ending the run takes less than the difference of the last two.
RENEW_SECONDS = 10.0
GIVE_UP_SECONDS = 45.0
DEAD_SECONDS = 150.0


class HeartbeatOwnership(Ownership):
    """Claims of this process, renewed in the background while they are held."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = boottime) -> None:
        self._ledger = ledger
        self._owner = this_process()
        self._monitor = HeartbeatMonitor(clock)
        self._renewal: Periodic | None = None
        self._lapsed = False

    def new_owner(self) -> Owner:
        return self._owner

    def owns(self, attempt: Attempt) -> bool:
        return attempt.owner.token == self._owner.token

    def owner_is_gone(self, attempt: Attempt) -> bool:
        heartbeat = (attempt.number, self._ledger.heartbeat(attempt.number))
        return owner_is_dead(attempt.owner) or self._monitor.unchanged_seconds(heartbeat) > DEAD_SECONDS

    def hold(self, attempt: int) -> None:
        if self._renewal is None:
            self._ledger.renew(attempt)
            self._lapsed = False
            self._renewal = Periodic(
                lambda: self._renew(attempt),
                RENEW_SECONDS,
                name="renew heartbeat",
                request_id=self._ledger.request_id,
                attempt=attempt,
            )

    def release(self) -> None:
        if self._renewal:
            self._renewal.stop()
        self._renewal = None

    @property
    def valid(self) -> bool:
        if self._renewal and self._renewal.age > GIVE_UP_SECONDS:
            self._lapsed = True
        return self._renewal is not None and not self._lapsed

    def _renew(self, attempt: int) -> None:
        # After a lapse, of a suspended machine for example, another may own the next attempt: to renew would hide it.
        if self.valid:
            self._ledger.renew(attempt)


def this_process() -> Owner:
    """A new claimant in the present process."""
    pid = os.getpid()
    return Owner(
        token=uuid.uuid4().hex, host=_host(), pid=pid, process_started=_started(pid), process_ticks=_started_ticks(pid)
    )


def owner_is_dead(owner: Owner) -> bool:
    """Whether the owner was a process of this machine that is gone; ``False`` where that cannot be seen from here."""
    if owner.host != _host():
        return False
    try:
        started, ticks = _started(owner.pid), _started_ticks(owner.pid)
    except psutil.NoSuchProcess:
        return True
    if ticks is not None and owner.process_ticks is not None:
        return ticks != owner.process_ticks
    return started != owner.process_started


class HeartbeatMonitor:
    """Measures, by this machine's clock alone, for how long another owner's heartbeat has not changed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heartbeat: object = None
        self._since = self._read_at = clock()

    def unchanged_seconds(self, heartbeat: object) -> float:
        """For how long the heartbeat has had this value, since it was first read.

        Counted anew where this process was away itself: the owner may have been suspended with it.
        """
        at = self._clock()
        if heartbeat != self._heartbeat or at - self._read_at > GIVE_UP_SECONDS:
            self._heartbeat, self._since = heartbeat, at
        self._read_at = at
        return at - self._since


def _host() -> str:
    # The MAC address tells apart containers that were given the same host name.
    return f"{socket.gethostname()}-{uuid.getnode():x}"


def _started(pid: int) -> float:
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    return float(process.create_time())


def _started_ticks(pid: int) -> int | None:
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # Field 22; the second is the name, in parentheses, and may hold anything.
    return int(content.rpartition(")")[2].split()[19])
